import type { Command } from 'commander';
import { isEspalierError } from '../../errors.ts';
import { parseWeights, type Weights } from '../../runtime/weights.ts';
import type { Context, Start } from '../context.ts';
import { type ArithmeticOptions, addArithmeticOptions, addGlobalOptions, integer } from '../options.ts';

interface Options extends ArithmeticOptions {
  batch: string;
  prompt: number;
  tokens: number;
}

const maxTokens = 2 ** 20;

/** `espalier bench model` */
export function defineBenchModel(bench: Command, start: Start): void {
  const command = bench
    .command('model')
    .description('Prefill and decode of models, which are held in memory together and take turns.')
    .argument('<models...>', 'folders of checkpoints; MODEL@WEIGHTS, such as ./mixtral@int4, for its own --weights')
    .option('--batch <list>', 'sequences that decode together, such as 1,4,16', '1')
    .option('--prompt <n>', 'tokens before the first one decoded', integer(1, maxTokens), 512)
    .option('--tokens <n>', 'decode steps at each batch size', integer(4, maxTokens), 64);
  start<Options>(addGlobalOptions(addArithmeticOptions(command), { gpu: 'several' }), run);
}

async function run({ args, options, terminal, signal }: Context<Options>): Promise<undefined> {
  const { parseBatch } = await import('../../bench/lists.ts');
  const { benchModels } = await import('../../bench/model.ts');
  const { describeModelBench } = await import('../../bench/model-text.ts');
  const { batch, prompt, tokens, device, threads, seed, weights, kvCache, activations } = options;
  const report = await benchModels({
    device,
    models: args.map((arg) => parseModel(arg, weights)),
    batch: parseBatch(batch),
    prompt,
    tokens,
    kvCache,
    activations,
    threads,
    seed,
    signal,
    onProgress: (fraction, doing) => terminal.progress(fraction, doing),
    onWarning: (message) => terminal.warn(message),
  });
  terminal.endProgress();
  terminal.document(report);
  terminal.print(describeModelBench(report));
}

/** What follows the last @ counts as weights if it names some; else it belongs to the path. */
function parseModel(text: string, weights: Weights | undefined): { path: string; weights: Weights | undefined } {
  const at = text.lastIndexOf('@');
  if (at < 1) return { path: text, weights };
  try {
    return { path: text.slice(0, at), weights: parseWeights(text.slice(at + 1)) };
  } catch (error) {
    if (isEspalierError(error) && error.code === 'USAGE') return { path: text, weights };
    throw error;
  }
}
