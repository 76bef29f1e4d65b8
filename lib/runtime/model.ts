/** A model ready to run. */
import { join } from 'node:path';
import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { readJsonFile } from '../checkpoint/json-file.ts';
import { EspalierError } from '../errors.ts';
import { Grammars } from '../grammar/grammars.ts';
import { describeModel } from '../models/registry.ts';
import type { ModelSpec } from '../models/spec.ts';
import {
  type NativeEngine,
  type NativeEngineInfo,
  type NativeStep,
  type NativeStepResult,
  native,
  runJob,
} from '../native.ts';
import { type ChatTemplate, loadChatTemplate, readChatTemplate } from '../tokenizer/chat-template.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { type ActivationType, activationTypes, checkChoice, type KvCacheType, kvCacheTypes } from './arithmetic.ts';
import { type DeviceName, gpusOf } from './device.ts';
import { skippingExperts } from './gate-ratios.ts';
import {
  type GeneratedPiece,
  type GenerateOptions,
  generate,
  type Prompt,
  type ScoreOptions,
  score,
} from './generate.ts';
import { KV_BLOCK, KvBlockPool } from './kv-blocks.ts';
import type { TokenLogprob } from './logprobs.ts';
import { nativeModel } from './native-spec.ts';
import { Scheduler } from './scheduler.ts';
import { type ResolvedWeights, resolveWeights, type Weights } from './weights.ts';

export interface LoadOptions {
  /**
   * Where it runs. GPUs take bf16 and int8 weights (`weights` of source, bf16 or int8), and a KV cache of float32 or
   * bf16, all of which they have memory for from the start. @default 'cpu'
   */
  device?: DeviceName | undefined;
  /** Threads of the native code; 0: one for each core. @default 0 */
  threads?: number | undefined;
  /**
   * What weights are held as, for all or for experts and the rest apart; of a packed checkpoint what they were packed as.
   * @default 'source', of a packed checkpoint that
   */
  weights?: Weights | undefined;
  /** `auto` runs matrices with enough zeros in a sparse format, `dense` runs all dense. @default 'auto' */
  format?: 'auto' | 'dense' | undefined;
  /**
   * Use the weights of a packed checkpoint where its files are mapped: nothing is copied, pages are read when they are
   * first needed and shared with other processes. The files must then stay as they are while the model lives. Otherwise
   * they are copied into memory of large pages, in which decode runs faster. @default false
   */
  mapped?: boolean | undefined;
  /**
   * Tokens that the KV cache has room for, over all sequences. Memory is used as it fills.
   * @default four full contexts, of at most 8192 tokens each
   */
  kvTokens?: number | undefined;
  /**
   * What the KV cache holds keys and values as. Shorter types make decode over long contexts faster and results a little
   * different. @default 'float32'
   */
  kvCache?: KvCacheType | undefined;
  /**
   * How bf16 weights see their inputs. With `bf16` long prompts run several times as fast where the processor has matrix
   * units, and results differ a little from float32's. @default 'float32'
   */
  activations?: ActivationType | undefined;
  /** File of a Jinja chat template, in place of the checkpoint's. @default the checkpoint's, if it has one */
  chatTemplate?: string | undefined;
  /**
   * Leave out a token's experts whose gates are small against its first one's, by what pruning measured and stored in
   * espalier.json: fewer weights are read for a token, and results differ. @default false
   */
  skipExperts?: boolean | undefined;
  /** Layers loaded, of how many. */
  onProgress?: ((done: number, total: number) => void) | undefined;
  onWarning?: ((message: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** Few enough tokens that sequences which decode beside a long prompt are not held up for long. */
const batchLimits = { stepTokens: 512, maxSequences: 256 };
const defaultContexts = 4;
const defaultContextLimit = 8192;

export class Model {
  /** Folder of the checkpoint. */
  readonly path: string;
  readonly spec: ModelSpec;
  /** Undefined where the checkpoint has no tokenizer.json: the model then takes and gives token ids. */
  readonly tokenizer: Tokenizer | undefined;
  /** Bytes and formats as packed. */
  readonly info: NativeEngineInfo;
  /** @internal */
  readonly kv: KvBlockPool;
  /** @internal */
  readonly scheduler: Scheduler;
  /** @internal */
  readonly grammars: Grammars;
  readonly #engine: NativeEngine;
  /** In place of the checkpoint's. */
  #template: ChatTemplate | undefined;
  #disposed = false;

  private constructor(
    path: string,
    spec: ModelSpec,
    tokenizer: Tokenizer | undefined,
    engine: NativeEngine,
    kv: KvBlockPool,
    template: ChatTemplate | undefined,
  ) {
    this.path = path;
    this.spec = spec;
    this.tokenizer = tokenizer;
    this.kv = kv;
    this.info = native().engineInfo(engine);
    this.#engine = engine;
    this.#template = template;
    this.grammars = new Grammars(tokenizer, spec.eosTokenIds, spec.vocabularySize);
    this.scheduler = new Scheduler((step, signal) => this.step(step, signal), kv, batchLimits);
  }

  /**
   * Reads a checkpoint folder and packs its weights for this machine, or maps those of a packed one. Throws what openCheckpoint and describeModel say of
   * a bad checkpoint, `OUT_OF_MEMORY`, `ABORTED`, and `DEVICE` where a GPU that was asked for cannot be used.
   */
  static async load(path: string, options: LoadOptions = {}): Promise<Model> {
    checkLoadOptions(options);
    using checkpoint = openCheckpoint(path);
    const generationConfig = readGenerationConfig(checkpoint);
    const { spec: described, warnings } = describeModel(checkpoint.config, checkpoint, { generationConfig });
    const spec = options.skipExperts ? skippingExperts(checkpoint.dir, described) : described;
    for (const warning of warnings) options.onWarning?.(warning);
    const tokenizer = await Tokenizer.find(checkpoint.dir);
    const { chatTemplate } = options;
    const template = chatTemplate === undefined ? undefined : await readChatTemplate(chatTemplate);
    const context = Math.min(spec.maxPositions, defaultContextLimit);
    const kv = new KvBlockPool(Math.ceil((options.kvTokens ?? defaultContexts * context) / KV_BLOCK));
    const engine = await runJob(
      () =>
        native().engineLoad(
          nativeModel(checkpoint, spec),
          [...checkpoint.files],
          {
            gpus: gpuList(options.device),
            threads: options.threads ?? 0,
            sparse: options.format !== 'dense',
            mapped: options.mapped ?? false,
            ...weightsOf(checkpoint, options.weights),
            kvBlocks: kv.size,
            kvCache: options.kvCache ?? 'float32',
            activations: options.activations ?? 'float32',
          },
          options.onProgress,
        ),
      options.signal,
      { file: checkpoint.dir },
    );
    return new Model(checkpoint.dir, spec, tokenizer, engine, kv, template);
  }

  /**
   * Generates from a text, token ids or chat messages, a piece a step. Breaking out of the loop or aborting `signal` stops
   * within one step. Several at the same time share their steps, and prompts that begin alike what was computed of them;
   * what each gets does not depend on the others. Throws `USAGE` naming an option, `CONTEXT_FULL`, `ABORTED`,
   * `DISPOSED`.
   *
   * @example for await (const { text } of model.generate('Once', { maxTokens: 32 })) process.stdout.write(text)
   */
  generate(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<GeneratedPiece, void> {
    return generate(this, prompt, options);
  }

  /**
   * How likely each token of a text is after those before it, by the model's own distribution. Runs in the same batch as
   * `generate`; what the cache knows of the text is computed again. Throws `USAGE`, `CONTEXT_FULL`, `ABORTED`, `DISPOSED`.
   * @returns One for each token; null for the first, which nothing comes before.
   */
  async score(prompt: Prompt, options: ScoreOptions = {}): Promise<(TokenLogprob | null)[]> {
    return score(this, prompt, options);
  }

  /** The template of `generate` for chat messages. @throws TOKENIZER if the checkpoint has none */
  async chatTemplate(): Promise<ChatTemplate> {
    this.#template ??= await loadChatTemplate(this.path);
    return this.#template;
  }

  /** One batch step of the engine; `signal` stops it between two layers. @internal */
  async step(step: NativeStep, signal?: AbortSignal): Promise<NativeStepResult> {
    this.requireLive();
    return runJob(() => native().engineStep(this.#engine, step), signal);
  }

  /** @throws DISPOSED @internal */
  requireLive(): void {
    if (this.#disposed) throw new EspalierError('DISPOSED', `the model ${this.path} was disposed`);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Frees the weights and the cache as soon as no step is running; later calls throw `DISPOSED`. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.grammars.dispose();
    native().engineDispose(this.#engine);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }
}

function gpuList(device: DeviceName = 'cpu'): Int32Array | undefined {
  const gpus = gpusOf(device);
  return gpus && Int32Array.from(gpus);
}

function checkLoadOptions(options: LoadOptions): void {
  const { device = 'cpu', threads = 0, kvTokens, kvCache = 'float32', activations = 'float32' } = options;
  gpusOf(device);
  if (!Number.isInteger(threads) || threads < 0 || threads > 1024) {
    throw new EspalierError(
      'USAGE',
      `threads must be an integer from 0 (one for each core) to 1024; found ${threads}`,
      {
        field: 'threads',
      },
    );
  }
  if (kvTokens !== undefined && !(Number.isSafeInteger(kvTokens) && kvTokens >= 1)) {
    throw new EspalierError('USAGE', `kvTokens must be a positive integer; found ${kvTokens}`, { field: 'kvTokens' });
  }
  checkChoice('kvCache', kvCache, kvCacheTypes);
  checkChoice('activations', activations, activationTypes);
}

/** What the matrices become; a packed checkpoint has decided that. */
function weightsOf(checkpoint: Checkpoint, wished: Weights | undefined): ResolvedWeights {
  const packed = checkpoint.packedWeights;
  if (packed === undefined) return resolveWeights(wished);
  const held = resolveWeights(packed as Weights);
  const { experts, rest } = wished === undefined ? held : resolveWeights(wished);
  if (experts === held.experts && rest === held.rest) return held;
  throw new EspalierError(
    'USAGE',
    `${checkpoint.dir} is packed with experts=${held.experts},rest=${held.rest}, so it cannot be loaded with ` +
      `experts=${experts},rest=${rest}; convert the checkpoint that it was made from with these`,
    { file: checkpoint.dir, field: 'weights' },
  );
}

function readGenerationConfig(checkpoint: Checkpoint): unknown {
  const name = 'generation_config.json';
  if (!checkpoint.otherFiles().includes(name)) return undefined;
  return readJsonFile(join(checkpoint.dir, name), 'CONFIG', 2 ** 20).value;
}
