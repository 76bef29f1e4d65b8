/** The public API. */
export type { TokenSource } from './calibration/token-source.ts';
export {
  type ConvertOptions,
  type ConvertProgress,
  type ConvertResult,
  convertCheckpoint,
} from './checkpoint/convert.ts';
export { type ErrorCode, EspalierError, errorCodes, isEspalierError } from './errors.ts';
export { type PerplexityOptions, type PerplexityResult, perplexity } from './eval/perplexity.ts';
export type { ModelSpec } from './models/spec.ts';
export type { CalibrationSource } from './prune/calibrate.ts';
export { type DryRunLayer, type DryRunResult, dryRun } from './prune/dry-run.ts';
export type { Manifest } from './prune/manifest.ts';
export { type Method, type MethodName, methodNames, methods } from './prune/methods.ts';
export type { PruneProgress } from './prune/progress.ts';
export { type PruneOptions, type PruneResult, prune } from './prune/prune.ts';
export { type Recipe, type RecipeOptions, readRecipe } from './prune/recipe.ts';
export type { ExpertReport, LayerReport, SparsityCount } from './prune/report.ts';
export { type Inspection, type InspectOptions, inspect, type LayerInspection } from './report/inspect.ts';
export type { ActivationType, KvCacheType } from './runtime/arithmetic.ts';
export type { GeneratedPiece, GenerateOptions, Prompt } from './runtime/generate.ts';
export { type LoadOptions, Model } from './runtime/model.ts';
export { type PackOptions, packCheckpoint } from './runtime/pack.ts';
export type { SamplingOptions } from './runtime/sampling.ts';
export type { Precision, Weights } from './runtime/weights.ts';
export type { ChatMessage } from './tokenizer/chat-template.ts';
export { Tokenizer } from './tokenizer/tokenizer.ts';
export { version } from './version.ts';
