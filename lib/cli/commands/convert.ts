import { type Command, Option } from 'commander';
import type { ConvertProgress } from '../../checkpoint/checkpoint-copy.ts';
import { EspalierError } from '../../errors.ts';
import type { Context, Start } from '../context.ts';
import { addGlobalOptions, path } from '../options.ts';

interface Options {
  to: 'dense' | 'sparse' | 'packed';
  output: string;
  overwrite?: boolean;
}

/** `espalier convert` */
export function defineConvert(program: Command, start: Start): void {
  const command = program
    .command('convert')
    .description(
      'Store a checkpoint dense, for other runtimes, or sparse, for this one, without loss either way; or packed as ' +
        '--weights says, to start at once.',
    )
    .argument('<model>', 'folder of a checkpoint')
    .addOption(
      new Option('--to <layout>', 'how to store the copy').choices(['dense', 'sparse', 'packed']).makeOptionMandatory(),
    )
    .requiredOption('--output <dir>', 'folder to make', path)
    .option('--overwrite', 'replace a checkpoint that is there');
  start<Options>(addGlobalOptions(command), run);
}

async function run({ args, options, terminal, signal }: Context<Options>): Promise<undefined> {
  const { convertCheckpoint } = await import('../../checkpoint/convert.ts');
  const { packCheckpoint } = await import('../../runtime/pack.ts');
  const { formatBytes } = await import('../../report/format.ts');
  const { to, output, overwrite, weights, threads } = options;
  const common = {
    from: args[0]!,
    output,
    overwrite,
    signal,
    onProgress: ({ phase, doneBytes, totalBytes }: ConvertProgress) =>
      terminal.progress(
        totalBytes === 0 ? 1 : doneBytes / totalBytes,
        `${phase === 'measure' ? 'measuring' : 'writing'} ${formatBytes(totalBytes)}`,
      ),
  };
  if (to !== 'packed' && weights !== undefined) {
    throw new EspalierError('USAGE', `--weights goes with --to packed; a ${to} copy holds the weights as they are`, {
      field: 'weights',
    });
  }
  const result =
    to === 'packed'
      ? await packCheckpoint({ ...common, weights, threads })
      : await convertCheckpoint({ ...common, to });
  terminal.endProgress();
  terminal.document({ ...result, to });
  terminal.print(
    `${result.output} is stored ${to}: ${formatBytes(result.outputBytes)}, from ${formatBytes(result.sourceBytes)}`,
  );
}
