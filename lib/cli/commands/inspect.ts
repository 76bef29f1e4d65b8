import type { Command } from 'commander';
import type { Context, Start } from '../context.ts';
import { addGlobalOptions, type GlobalOptions } from '../options.ts';

/** `espalier inspect` */
export function defineInspect(program: Command, start: Start): void {
  const command = program
    .command('inspect')
    .description('Show what a checkpoint holds: architecture, experts, bytes, sparsity and kurtosis of each layer.')
    .argument('<model>', 'folder of a checkpoint');
  start(addGlobalOptions(command), run);
}

async function run({ args, options, terminal, signal }: Context<GlobalOptions>): Promise<undefined> {
  const { inspect } = await import('../../report/inspect.ts');
  const { describeInspection } = await import('../../report/inspect-text.ts');
  const inspection = await inspect(args[0]!, {
    threads: options.threads,
    signal,
    onProgress: (done, total) => terminal.progress(done / total, `layer ${done} of ${total}`),
    onWarning: (message) => terminal.warn(message),
  });
  terminal.endProgress();
  terminal.document(inspection);
  terminal.print(describeInspection(inspection));
}
