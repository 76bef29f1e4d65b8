import { type Command, Option } from 'commander';
import type { Context, Start } from '../context.ts';
import { addGlobalOptions, path } from '../options.ts';

interface Options {
  to: 'dense' | 'sparse';
  output: string;
  overwrite?: boolean;
}

/** `espalier convert` */
export function defineConvert(program: Command, start: Start): void {
  const command = program
    .command('convert')
    .description('Store a checkpoint dense, for other runtimes, or sparse, for this one; without loss either way.')
    .argument('<model>', 'folder of a checkpoint')
    .addOption(new Option('--to <layout>', 'how to store the copy').choices(['dense', 'sparse']).makeOptionMandatory())
    .requiredOption('--output <dir>', 'folder to make', path)
    .option('--overwrite', 'replace a checkpoint that is there');
  start<Options>(addGlobalOptions(command), run);
}

async function run({ args, options, terminal, signal }: Context<Options>): Promise<undefined> {
  const { convertCheckpoint } = await import('../../checkpoint/convert.ts');
  const { formatBytes } = await import('../../report/format.ts');
  const { to, output, overwrite } = options;
  const result = await convertCheckpoint({
    from: args[0]!,
    to,
    output,
    overwrite,
    signal,
    onProgress: ({ phase, doneBytes, totalBytes }) =>
      terminal.progress(
        totalBytes === 0 ? 1 : doneBytes / totalBytes,
        `${phase === 'measure' ? 'measuring' : 'writing'} ${formatBytes(totalBytes)}`,
      ),
  });
  terminal.endProgress();
  terminal.document({ ...result, to });
  terminal.print(
    `${result.output} is stored ${to}: ${formatBytes(result.outputBytes)}, from ${formatBytes(result.sourceBytes)}`,
  );
}
