/** Options that several commands share, and the strict reading of their values. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { type ActivationType, activationTypes, type KvCacheType, kvCacheTypes } from '../runtime/arithmetic.ts';
import { type DeviceName, gpuOf, gpusOf } from '../runtime/device.ts';
import { parseWeights, precisions, type Weights } from '../runtime/weights.ts';

export interface GlobalOptions {
  device: DeviceName;
  threads: number;
  /** Undefined where not given, so that a recipe's seed can hold. */
  seed?: number;
  weights?: Weights;
  /** A path only where the command takes one. */
  json?: boolean | string;
  quiet?: boolean;
}

/** Whether a command runs on GPUs, too. */
type GpuUse = 'none' | 'one' | 'several';

/**
 * Adds what every command takes; `json` says whether its document may go to a file, beside the text on stdout.
 */
export function addGlobalOptions(
  command: Command,
  { json = 'stream', gpu = 'none' }: { json?: 'stream' | 'stream or file'; gpu?: GpuUse } = {},
): Command {
  return command
    .optionsGroup('Options of every command:')
    .addOption(deviceOption(gpu))
    .option('--threads <n>', 'threads, 0 for one a core', integer(0, 1024), 0)
    .option('--seed <n>', 'seed of every random choice (default: 0)', integer(0, Number.MAX_SAFE_INTEGER))
    .option(
      '--weights <types>',
      `what matrices are held as: ${precisions.join(', ')}, or experts=int4,rest=int8`,
      weights,
    )
    .option(
      json === 'stream' ? '--json' : '--json [file]',
      `one JSON document on stdout, all else on stderr${json === 'stream' ? '' : '; with a file, there'}`,
    )
    .option('--quiet', 'no progress and notes');
}

function deviceOption(gpu: GpuUse): Option {
  if (gpu === 'none') return new Option('--device <device>', 'where the model runs').choices(['cpu']).default('cpu');
  const devices =
    gpu === 'one'
      ? 'cpu, cuda, or a GPU such as cuda:1'
      : 'cpu, cuda (as many GPUs as it needs), or some such as cuda:1 or cuda:0,1';
  return new Option('--device <device>', `where the model runs: ${devices}`)
    .argParser((text) => {
      try {
        if (gpu === 'one') gpuOf(text);
        else gpusOf(text);
      } catch {
        throw new InvalidArgumentError(`It must be ${devices}.`);
      }
      return text;
    })
    .default('cpu');
}

export interface ArithmeticOptions {
  kvCache: KvCacheType;
  activations: ActivationType;
  skipExperts?: boolean;
}

/** What the commands that run a model may compute with. */
export function addArithmeticOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--kv-cache <type>', 'what the cache holds keys and values as')
        .choices(kvCacheTypes)
        .default('float32'),
    )
    .addOption(activationsOption())
    .option('--skip-experts', 'run fewer experts where a token hardly needs them, as measured while pruning');
}

export function activationsOption(): Option {
  return new Option('--activations <type>', 'how bf16 weights see their inputs; bf16 is faster with long prompts')
    .choices(activationTypes)
    .default('float32');
}

/** Reads an integer in [low, high], digits only. */
export function integer(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = /^[+-]?\d+$/.test(text) ? Number(text) : Number.NaN;
    if (value >= low && value <= high) return value;
    throw new InvalidArgumentError(
      high === Number.MAX_SAFE_INTEGER
        ? `It must be an integer of at least ${low}.`
        : `It must be an integer from ${low} to ${high}.`,
    );
  };
}

/** Reads a decimal number; what range it must lie in is said by `allowed`. */
export function decimal(allowed: string, isAllowed: (value: number) => boolean): (text: string) => number {
  return (text) => {
    const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
    if (Number.isFinite(value) && isAllowed(value)) return value;
    throw new InvalidArgumentError(`It must be ${allowed}.`);
  };
}

/** Reads one precision, or one for the experts and one for the rest. */
function weights(text: string): Weights {
  try {
    return parseWeights(text);
  } catch {
    throw new InvalidArgumentError(
      `It must be one of ${precisions.join(', ')}, or parts such as experts=int4,rest=int8.`,
    );
  }
}

/** Reads a path. One that begins with a dash is more likely an option whose value was forgotten. */
export function path(text: string): string {
  if (text === '') throw new InvalidArgumentError('It must be a path.');
  if (text.startsWith('-')) throw new InvalidArgumentError(`It must be a path; for a file of that name give ./${text}`);
  return text;
}

/** The flag of an option of the library: `sequenceLength` → `--sequence-length`. */
export function flagOf(option: string): string {
  return `--${option.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}
