import type { Command } from 'commander';
import type { Context, Start } from '../context.ts';
import { addGlobalOptions, type GlobalOptions } from '../options.ts';

/** `espalier demo` */
export function defineDemo(program: Command, start: Start): void {
  const command = program
    .command('demo')
    .description('The whole story on the embedded model, with a table of before and after.');
  start(addGlobalOptions(command), run);
}

async function run({ options, terminal, signal }: Context<GlobalOptions>): Promise<undefined> {
  const { runDemo } = await import('../../report/demo.ts');
  const { describeDemo } = await import('../../report/demo-text.ts');
  const { describeInspection } = await import('../../report/inspect-text.ts');
  const { threads, weights, seed } = options;
  let told = '';
  const report = await runDemo({
    threads,
    weights,
    seed,
    signal,
    onInspected: (inspection) => terminal.print(`${describeInspection(inspection)}\n`),
    onProgress: (fraction, doing) => {
      if (doing !== told) terminal.milestone(doing);
      told = doing;
      terminal.progress(fraction, doing);
    },
    onWarning: (message) => terminal.warn(message),
  });
  terminal.endProgress();
  terminal.document(report);
  terminal.print(describeDemo(report));
}
