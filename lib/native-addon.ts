/** What the addon exports: its functions and what they take and give; what pruning hands over is in native-pruning.ts. */
import type {
  NativeExpertRecovery,
  NativeForward,
  NativeMatrixMoments,
  NativeMatrixReport,
  NativeMoments,
  NativePlan,
  NativePruner,
  NativePrunerOptions,
  NativeRecovery,
  NativeRestructure,
  NativeSurvey,
  NativeSurveyRequest,
} from './native-pruning.ts';

/** A tensor as a safetensors header describes it. */
export interface NativeTensor {
  readonly name: string;
  /** safetensors name of the element type, for example `BF16`. */
  readonly dtype: string;
  readonly shape: number[];
  /** Byte range in the file, counted from the start of the file. */
  readonly begin: number;
  readonly end: number;
}

/** A safetensors file mapped for reading. */
export interface NativeSafetensorsFile {
  readonly tensors: NativeTensor[];
  readonly metadata: Record<string, string>;
  readonly size: number;
  /** A copy of bytes [begin, end). Throws `CHANGED` if the file is no longer what was opened. */
  read(begin: number, end: number): Uint8Array;
  dispose(): void;
}

/** Work in progress on the library's own threads. */
export interface NativeJob<T> {
  readonly promise: Promise<T>;
  /** Asks the work to stop; the promise then rejects with `ABORTED`. */
  cancel(): void;
}

/** Called on the JavaScript thread while a job runs. */
export type NativeProgress = (done: number, total: number) => void;

/** A byte range of one of the files handed over beside a spec. */
export interface NativeRange {
  readonly file: number;
  readonly begin: number;
  readonly end: number;
}

/** A weight resolved to bytes; a vector has one row. */
export interface NativeWeight extends NativeRange {
  readonly name: string;
  readonly dtype: string;
  readonly rows: number;
  readonly cols: number;
  /** Present where the range holds only the kept values. */
  readonly bitmask?: NativeRange;
  /** The range is a packed matrix, which `dtype` is the source of. */
  readonly packed?: true;
}

declare const engineBrand: unique symbol;
export type NativeEngine = { readonly [engineBrand]: true };

export type NativePrecision = 'source' | 'bf16' | 'int8' | 'int4';

/** How bf16 weights see their inputs. */
export type NativeActivations = 'float32' | 'bf16';

export interface NativeEngineOptions {
  /** Numbers of the CUDA devices to run on, as many as it takes, of none on all; undefined: the CPU. */
  readonly gpus: Int32Array | undefined;
  /** 0: one for each core. */
  readonly threads: number;
  /** Run matrices with enough zeros in a sparse format. */
  readonly sparse: boolean;
  /** Use packed weights where their file is mapped, instead of a copy in large pages. */
  readonly mapped: boolean;
  readonly experts: NativePrecision;
  readonly rest: NativePrecision;
  readonly kvBlocks: number;
  readonly kvCache: 'float32' | 'bf16' | 'int8';
  readonly activations: NativeActivations;
}

export interface NativeSlice {
  readonly count: number;
  readonly position: number;
  readonly blocks: Int32Array;
}

/** What a request says about single tokens, applied to their logits in this order (native/engine/logit_rules.h). */
export interface NativeLogitRules {
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly biasIds: Int32Array;
  readonly biasValues: Float32Array;
  /** Token i may come if bit i % 32 of word i / 32 is set. */
  readonly mask?: Int32Array | undefined;
  /** Prompt and answer, which begins at `answerBegin`; may be empty where there is no penalty. */
  readonly history: Int32Array;
  readonly answerBegin: number;
}

export interface NativeSample {
  readonly row: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly seed: bigint;
  readonly step: number;
  readonly rules?: NativeLogitRules | undefined;
  /** Report the drawn token's log-probability, and so many of the most likely tokens. */
  readonly top?: number | undefined;
}

export interface NativeStep {
  readonly tokens: Int32Array;
  /** Cover the tokens in order. */
  readonly slices: readonly NativeSlice[];
  readonly logits?: Int32Array;
  readonly samples?: readonly NativeSample[];
  readonly scoreRows?: Int32Array;
  readonly scoreTargets?: Int32Array;
  /** Report so many of the most likely tokens for each score. */
  readonly scoreTop?: number;
}

export interface NativeStepResult {
  readonly logits: Float32Array;
  readonly samples: Int32Array;
  /** Natural log-probability of each sample that was asked for with `top`, before rules, temperature and filters. */
  readonly sampleScores: Float64Array;
  readonly scores: Float64Array;
  /** The most likely tokens of samples, then of scores, as many each as it asked for, and their log-probabilities. */
  readonly topIds: Int32Array;
  readonly topScores: Float64Array;
}

export interface NativeEngineInfo {
  readonly weightBytes: number;
  readonly expertBytes: number;
  readonly activeBytes: number;
  /** Of the KV cache when it is full. */
  readonly kvBytes: number;
  readonly formats: string[];
  /** The GPUs that it runs on and what each has of it, in the order of the layers; none: it runs on the CPU. */
  readonly gpus: readonly { readonly gpu: number; readonly layers: number; readonly weightBytes: number }[];
}

/** What the header of a packed matrix says. */
export interface NativePackedHeader {
  readonly rows: number;
  readonly cols: number;
  /** Type of the elements that were packed. */
  readonly dtype: string;
  /** For example `bitmap int8`. */
  readonly format: string;
}

declare const matrixBrand: unique symbol;
export type NativeMatrix = { readonly [matrixBrand]: true };

export interface NativeFormat {
  /** `auto`: what suits the zeros and this machine. */
  readonly storage: 'auto' | 'dense' | 'bitmap' | 'n:m';
  readonly values: 'bf16' | 'f32' | 'int8' | 'int4';
  readonly n: number;
  readonly m: number;
}

export interface NativeMatrixInfo {
  readonly rows: number;
  readonly cols: number;
  readonly bytes: number;
  readonly format: string;
}

export interface NativeFeatures {
  readonly model: string;
  readonly isa: string;
  readonly best: string;
  readonly note: string;
  readonly threads: number;
  readonly flags: string[];
  /** Sparse formats that the kernels have no product for, N:M named by 2:4; matrices that would suit them run dense. */
  readonly expanded: string[];
}

export interface NativeGpu {
  /** Among all that CUDA sees. */
  readonly number: number;
  readonly name: string;
  readonly capability: string;
  readonly memory: number;
}

export interface NativeProductMeasure {
  readonly format: NativeFormat;
  readonly rows: number;
  readonly cols: number;
  /** Of bitmaps. */
  readonly sparsity: number;
  /** 32 bits. */
  readonly seed: number;
  /** So many, each in memory of its own, are multiplied by one after the other. */
  readonly matrices: number;
  readonly batches: Int32Array;
  readonly activations: NativeActivations;
  readonly threads: number;
}

export interface NativeProductTimes {
  /** Of one matrix as packed. */
  readonly bytes: number;
  /** Bytes a second of a plain read of all matrices. */
  readonly ceiling: number;
  /** Of one product, for each batch. */
  readonly seconds: Float64Array;
  readonly samples: Int32Array;
}

/** GPUs that the kernels run on, and why there are none. */
export interface NativeCudaSurvey {
  /** Whether the kernels are in this build. */
  readonly compiled: boolean;
  readonly devices: readonly NativeGpu[];
  readonly reason: string;
  /** Where there are GPUs: whether cuBLASLt is found for their dense products, and its version and file or why not. */
  readonly hasCublasLt: boolean;
  readonly cublasLt: string;
}

export interface NativeAddon {
  readonly SafetensorsFile: { open(path: string): NativeSafetensorsFile };
  features(): NativeFeatures;
  /** Starts the driver, where there is one. */
  cudaDevices(): NativeCudaSurvey;
  /** Bytes a second of a plain read of a buffer of so many bytes. */
  cudaReadCeiling(gpu: number, bytes: number): NativeJob<number>;
  cudaMeasureProducts(gpu: number, measure: NativeProductMeasure): NativeJob<NativeProductTimes>;
  /** `spec` as lib/runtime/native-spec.ts makes it. */
  engineLoad(
    spec: object,
    files: NativeSafetensorsFile[],
    options: NativeEngineOptions,
    onProgress?: NativeProgress,
  ): NativeJob<NativeEngine>;
  engineStep(engine: NativeEngine, step: NativeStep): NativeJob<NativeStepResult>;
  engineInfo(engine: NativeEngine): NativeEngineInfo;
  engineDispose(engine: NativeEngine): void;
  /** `layer` as lib/runtime/native-spec.ts makes it. */
  prunerLoad(layer: object, files: NativeSafetensorsFile[], options: NativePrunerOptions): NativeJob<NativePruner>;
  /** Does ahead what the first prunerForward would begin with; another layer may run meanwhile. */
  prunerPrepare(pruner: NativePruner): NativeJob<void>;
  prunerForward(pruner: NativePruner, request: NativeForward, onProgress?: NativeProgress): NativeJob<void>;
  prunerRestructure(pruner: NativePruner, part: number, plan: NativeRestructure): NativeJob<void>;
  prunerSurvey(
    pruner: NativePruner,
    request: NativeSurveyRequest,
    onProgress?: NativeProgress,
  ): NativeJob<NativeSurvey[]>;
  prunerPrune(pruner: NativePruner, plan: NativePlan, onProgress?: NativeProgress): NativeJob<NativeMatrixReport[]>;
  prunerRecover(
    pruner: NativePruner,
    request: NativeRecovery,
    files: NativeSafetensorsFile[],
    onProgress?: NativeProgress,
  ): NativeJob<NativeExpertRecovery[]>;
  /** Share of the layer's expert weights whose |W_ij| · ‖X_j‖ is above `multiple` times the mean. */
  prunerOutliers(pruner: NativePruner, multiple: number): NativeJob<number>;
  /** Every expert matrix as it is now. */
  prunerMeasure(pruner: NativePruner): NativeJob<NativeMatrixMoments[]>;
  /** Bytes [begin, end) of an expert matrix as it is now. */
  prunerTensor(
    pruner: NativePruner,
    part: number,
    expert: number,
    role: 'gate' | 'up' | 'down',
    begin: number,
    end: number,
  ): Uint8Array;
  prunerDispose(pruner: NativePruner): void;
  /** For each cluster the squared distances of its members' flattened weights from their mean. */
  expertDistances(
    experts: readonly { readonly gate: NativeWeight; readonly up: NativeWeight; readonly down: NativeWeight }[],
    files: NativeSafetensorsFile[],
    clusters: readonly (readonly number[])[],
    threads: number,
  ): NativeJob<number[][]>;
  /** Rows of a dense matrix, or the mean of several: as they will be stored, and as numbers. */
  averageRows(
    matrix: Uint8Array,
    dtype: string,
    cols: number,
    rows: readonly (readonly number[])[],
  ): { readonly bytes: Uint8Array; readonly values: Float32Array };
  /** Bytes that packWeight will give. */
  packMeasure(
    weight: NativeWeight,
    files: NativeSafetensorsFile[],
    precision: NativePrecision,
    threads: number,
  ): NativeJob<number>;
  /** A weight as it lies in memory while the model runs (native/sparse/packed_block.h). */
  packWeight(
    weight: NativeWeight,
    files: NativeSafetensorsFile[],
    precision: NativePrecision,
    threads: number,
  ): NativeJob<Uint8Array>;
  weightMoments(weight: NativeWeight, files: NativeSafetensorsFile[], threads: number): NativeJob<NativeMoments>;
  packedHeader(file: NativeSafetensorsFile, begin: number, end: number): NativePackedHeader;
  /** A packed matrix as dense elements of the type that it was packed from. */
  packedRead(file: NativeSafetensorsFile, begin: number, end: number): Uint8Array;
  matrixPack(values: Float32Array, rows: number, cols: number, format: NativeFormat, threads: number): NativeMatrix;
  /** Normally distributed weights with the zeros that suit the format, which must not be `auto`; `seed` has 32 bits. */
  matrixRandom(
    rows: number,
    cols: number,
    format: NativeFormat,
    sparsity: number,
    seed: number,
    threads: number,
  ): NativeMatrix;
  matrixMultiply(
    matrix: NativeMatrix,
    x: Float32Array,
    tokens: number,
    out: Float32Array,
    activations: NativeActivations,
  ): void;
  matrixUnpack(matrix: NativeMatrix): Float32Array;
  matrixInfo(matrix: NativeMatrix): NativeMatrixInfo;
  matrixDispose(matrix: NativeMatrix): void;
  /** `expanded`: the format exists for matrices of so many columns, but has no product here. */
  formatSupport(format: NativeFormat, cols: number): 'taken' | 'expanded' | 'impossible';
  /** Bytes a second. */
  readCeiling(bytes: number, threads: number, plain: boolean): number;
  /** bf16 operations a second of the matrix units, 0 without them. */
  tilePeak(threads: number): number;
  route(
    logits: Float32Array,
    tokens: number,
    experts: number,
    /** RouteOptions of kernels.ts. */
    options: object,
  ): { experts: Int32Array; gates: Float32Array };
  scoreWeights(weights: Float32Array, rows: number, cols: number, norms: Float32Array | undefined): Float32Array;
  selectMask(
    scores: Float32Array,
    rows: number,
    cols: number,
    comparison: 'matrix' | 'row',
    budget: { readonly sparsity: number; readonly keep: number; readonly group: number },
  ): Uint8Array;
  writeEmbeddings(
    weight: NativeWeight,
    files: NativeSafetensorsFile[],
    tokens: Int32Array,
    path: string,
  ): NativeJob<void>;
  /** The codes that native code can return; equal to a subset of lib/errors.ts. */
  errorCodes(): string[];
}
