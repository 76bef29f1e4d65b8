import type { Command } from 'commander';
import type { Context, Start } from '../context.ts';
import { type ArithmeticOptions, addArithmeticOptions, addGlobalOptions, integer, path } from '../options.ts';

interface Options extends ArithmeticOptions {
  data: string;
  sequenceLength?: number;
  maxWindows?: number;
}

/** `espalier perplexity` */
export function definePerplexity(program: Command, start: Start): void {
  const command = program
    .command('perplexity')
    .description('Measure the perplexity of a model on a text.')
    .argument('<model>', 'folder of a checkpoint')
    .requiredOption('--data <file>', 'text, .jsonl, .parquet, or token ids as .u16 or .u32', path)
    .option('--sequence-length <n>', 'tokens of a window (default: 2048, at most the context)', integer(2, 1_048_576))
    .option('--max-windows <n>', 'only the first so many (default: all)', integer(1, Number.MAX_SAFE_INTEGER));
  start<Options>(addGlobalOptions(addArithmeticOptions(command), { gpu: 'several' }), run);
}

async function run({ args, options, terminal, signal }: Context<Options>): Promise<undefined> {
  const { perplexity } = await import('../../eval/perplexity.ts');
  const { data, sequenceLength, maxWindows, device, threads, weights, kvCache, activations, skipExperts } = options;
  const start = performance.now();
  const result = await perplexity({
    model: args[0]!,
    data,
    sequenceLength,
    maxWindows,
    device,
    threads,
    weights,
    kvCache,
    activations,
    skipExperts,
    signal,
    onProgress: ({ done, total, perplexity: soFar }) =>
      terminal.progress(done / total, `window ${done} of ${total}, perplexity ${soFar.toFixed(3)}`),
    onWarning: (message) => terminal.warn(message),
  });
  terminal.endProgress();
  const seconds = (performance.now() - start) / 1000;
  terminal.document({ ...result, model: args[0], seconds });
  const { windows, sequenceLength: length, tokens } = result;
  terminal.print(
    `perplexity ${result.perplexity.toFixed(4)} (${windows} windows of ${length} tokens, ${tokens} predicted, ${seconds.toFixed(1)} s)`,
  );
}
