import { isUtf8 } from 'node:buffer';
import { addAbortSignal } from 'node:stream';
import type { Command } from 'commander';
import { throwIfAborted } from '../../abort.ts';
import { EspalierError } from '../../errors.ts';
import type { Prompt } from '../../runtime/generate.ts';
import type { Context, Start } from '../context.ts';
import {
  type ArithmeticOptions,
  addArithmeticOptions,
  addGlobalOptions,
  decimal,
  flagOf,
  integer,
} from '../options.ts';

interface Options extends ArithmeticOptions {
  prompt: string;
  chat?: boolean;
  maxTokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  stop?: string[];
  ignoreEos?: boolean;
}

const maxInt32 = 2 ** 31 - 1;

/** `espalier generate` */
export function defineGenerate(program: Command, start: Start): void {
  const command = program
    .command('generate')
    .description('Go on with a text. The continuation is printed as it comes, without the prompt.')
    .argument('<model>', 'folder of a checkpoint')
    .requiredOption('--prompt <text>', 'what to go on with; - reads stdin, less one final line break')
    .option('--chat', "the prompt is a user's message, put into the model's chat template")
    .option('--max-tokens <n>', 'most tokens to generate (default: 256)', integer(1, maxInt32))
    .option(
      '--temperature <t>',
      '0 takes the most likely token (default: 0, or 1 with another sampling option)',
      decimal('a number from 0 (greedy) to 100', (t) => t >= 0 && t <= 100),
    )
    .option('--top-k <k>', 'sample among the k most likely, 0 for all (default: 0)', integer(0, maxInt32))
    .option(
      '--top-p <p>',
      'sample among those that reach p together (default: 1)',
      decimal('a number above 0 and at most 1', (p) => p > 0 && p <= 1),
    )
    .option(
      '--min-p <p>',
      'sample among those at least p times as likely as the first (default: 0)',
      decimal('a number from 0 to below 1', (p) => p >= 0 && p < 1),
    )
    .option(
      '--repetition-penalty <r>',
      'above 1 makes tokens that were there less likely (default: 1)',
      decimal('a number above 0 and at most 100', (r) => r > 0 && r <= 100),
    )
    .option('--stop <text>', 'end before this text; may be given several times', (text, all: string[] = []) => [
      ...all,
      text,
    ])
    .option('--ignore-eos', 'go on past ends of text');
  start<Options>(addGlobalOptions(addArithmeticOptions(command), { gpu: 'several' }), run);
}

async function run({ args, options, terminal, signal }: Context<Options>): Promise<undefined> {
  const {
    prompt: given,
    chat,
    ignoreEos,
    device,
    threads,
    weights,
    kvCache,
    activations,
    skipExperts,
    seed,
    maxTokens,
    temperature,
    stop,
  } = options;
  const { topK, topP, minP, repetitionPenalty } = options;
  const sampling = { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed, stop };
  const { resolveSampling } = await import('../../runtime/sampling.ts');
  resolveSampling(sampling, flagOf);
  const text = given === '-' ? await readPrompt(signal) : given;
  const { Model } = await import('../../runtime/model.ts');
  const { promptIds } = await import('../../runtime/generate.ts');
  await using model = await Model.load(args[0]!, {
    device,
    threads,
    weights,
    kvCache,
    activations,
    skipExperts,
    signal,
    onWarning: (message) => terminal.warn(message),
  });
  const prompt: Prompt = chat ? [{ role: 'user', content: text }] : text;
  const promptTokens = await promptIds(model, prompt);

  let whole = '';
  const ids: number[] = [];
  let finishReason: string | undefined;
  let firstAt = 0;
  try {
    for await (const piece of model.generate(promptTokens, { ...sampling, ignoreEos, signal })) {
      if (ids.length === 0) firstAt = performance.now();
      ids.push(...piece.ids);
      whole += piece.text;
      finishReason = piece.finishReason;
      if (!terminal.json) process.stdout.write(piece.text);
    }
  } finally {
    if (ids.length > 0) terminal.print('');
  }
  const seconds = (performance.now() - firstAt) / 1000;
  const tokensPerSecond = ids.length > 1 ? (ids.length - 1) / seconds : null;
  terminal.document({
    text: whole,
    ids,
    promptTokens: promptTokens.length,
    tokens: ids.length,
    tokensPerSecond,
    kvBytes: model.info.kvBytes,
    finishReason,
  });
  const speed = tokensPerSecond === null ? '' : `, ${tokensPerSecond.toFixed(1)} tokens/s`;
  terminal.note(`${promptTokens.length} prompt tokens, ${ids.length} generated${speed}, ended by ${finishReason}`);
}

async function readPrompt(signal: AbortSignal): Promise<string> {
  const parts: Buffer[] = [];
  try {
    for await (const part of addAbortSignal(signal, process.stdin)) parts.push(part as Buffer);
  } catch (cause) {
    throwIfAborted(signal);
    throw new EspalierError('IO', `cannot read the prompt from stdin: ${(cause as Error).message}`, { cause });
  }
  const bytes = Buffer.concat(parts);
  if (!isUtf8(bytes)) throw new EspalierError('USAGE', '--prompt: stdin is not UTF-8', { field: '--prompt' });
  return bytes.toString('utf8').replace(/\r?\n$/, '');
}
