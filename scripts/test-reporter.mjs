// A vitest reporter that writes what scripts/test.mjs adds up: { passed, failed, skipped: [{ name, reason }] }. What
// fails outside a test (a file that cannot be loaded, a hook, an unhandled rejection) counts as one failure.
import { writeFileSync } from 'node:fs';

export default class {
  onTestRunEnd(modules, unhandledErrors) {
    const summary = { passed: 0, failed: unhandledErrors.length, skipped: [] };
    for (const module of modules) {
      summary.failed += [module, ...module.children.allSuites()].filter((part) => part.errors().length > 0).length;
      for (const test of module.children.allTests()) {
        const { state, note } = test.result();
        if (state === 'passed') summary.passed += 1;
        else if (state === 'skipped') summary.skipped.push({ name: test.fullName, reason: note });
        else summary.failed += 1;
      }
    }
    writeFileSync(process.env.ESPALIER_TEST_SUMMARY, JSON.stringify(summary));
  }
}
