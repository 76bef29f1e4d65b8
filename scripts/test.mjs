// `npm test`: vitest, then the native tests through ctest. Names what was skipped and why, and ends with one line
// `N passed, N failed`. Arguments go to vitest; with them the native tests are left out.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { noNativeTests } from './toolchain.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const scratch = mkdtempSync(join(tmpdir(), 'espalier-test-'));
const filters = process.argv.slice(2);
const total = { passed: 0, failed: 0, skipped: [] };

function runVitest() {
  const summaryFile = join(scratch, 'vitest.json');
  const reporters = ['--reporter=default', `--reporter=${join(root, 'scripts/test-reporter.mjs')}`];
  const { status } = spawnSync(process.execPath, ['node_modules/vitest/vitest.mjs', 'run', ...reporters, ...filters], {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ESPALIER_TEST_SUMMARY: summaryFile },
  });
  const summary = existsSync(summaryFile)
    ? JSON.parse(readFileSync(summaryFile, 'utf8'))
    : { passed: 0, failed: 0, skipped: [] };
  total.passed += summary.passed;
  // Whatever vitest calls a failure is at least one.
  total.failed += status === 0 ? summary.failed : Math.max(summary.failed, 1);
  total.skipped.push(...summary.skipped);
}

function runNativeTests() {
  const reason = noNativeTests();
  if (reason !== undefined) {
    total.skipped.push({ name: 'the native tests', reason });
    return;
  }
  const report = join(scratch, 'ctest.xml');
  const jobs = String(availableParallelism());
  const { status } = spawnSync(
    'ctest',
    ['--test-dir', 'build', '--output-on-failure', '--no-tests=error', '--output-junit', report, '-j', jobs],
    { cwd: root, stdio: 'inherit' },
  );
  const suite = existsSync(report) ? (/<testsuite [^>]*>/.exec(readFileSync(report, 'utf8'))?.[0] ?? '') : '';
  const count = (attribute) => Number(new RegExp(`\\b${attribute}="(\\d+)"`).exec(suite)?.[1] ?? 0);
  const failed = status === 0 ? count('failures') : Math.max(count('failures'), 1);
  total.passed += count('tests') - count('failures') - count('disabled') - count('skipped');
  total.failed += failed;
}

try {
  runVitest();
  if (filters.length === 0) runNativeTests();
} finally {
  rmSync(scratch, { recursive: true, force: true });
}

for (const { name, reason } of total.skipped)
  console.log(`skipped: ${name}${reason === undefined ? '' : `: ${reason}`}`);
const skipped = total.skipped.length === 0 ? '' : `, ${total.skipped.length} skipped`;
console.log(`${total.passed} passed, ${total.failed} failed${skipped}`);
process.exitCode = total.failed === 0 && total.passed > 0 ? 0 : 1;
