/** The families Espalier knows, and the way from config.json to a checked ModelSpec. */
import { ConfigFields, show } from './config.ts';
import { buildDecoder, type Family, readSize, readSpecialTokens } from './decoder.ts';
import { mixtral } from './mixtral.ts';
import { olmoe } from './olmoe.ts';
import { qwen2Moe } from './qwen2-moe.ts';
import { qwen3Moe } from './qwen3-moe.ts';
import type { ModelSpec } from './spec.ts';
import { judgeUnreadFields, refuseForeignQuantization } from './unsupported.ts';
import { type CheckpointTensors, Weights } from './weights.ts';

export const families: readonly Family[] = [mixtral, olmoe, qwen2Moe, qwen3Moe];

export interface DescribeOptions {
  /** Parsed generation_config.json; its bos and eos ids go before those of config.json. */
  readonly generationConfig?: unknown;
  /** Path of config.json for error messages. @default 'config.json' */
  readonly file?: string;
}

export interface DescribedModel {
  readonly spec: ModelSpec;
  /** Things ignored that the user should know of, one sentence each. */
  readonly warnings: readonly string[];
}

/**
 * Reads what a checkpoint is.
 *
 * @param config Parsed config.json.
 * @param checkpoint Its tensors; only names, shapes and types are looked at.
 * @throws `CONFIG` where a field is wrong or asks for what Espalier lacks (`error.field` names it), `MISMATCH` where the
 *   tensors do not fit the config (`error.tensor` names it). Nothing is allocated in proportion to a field before the
 *   tensors it implies were found.
 */
export function describeModel(
  config: unknown,
  checkpoint: CheckpointTensors,
  options: DescribeOptions = {},
): DescribedModel {
  const fields = new ConfigFields(config, options.file);
  const family = familyOf(fields);
  refuseForeignQuantization(fields);
  const size = readSize(fields, family.defaults);
  const plan = family.plan(fields, size);
  const generation =
    options.generationConfig === undefined
      ? undefined
      : new ConfigFields(options.generationConfig, 'generation_config.json', '', fields.warnings);
  const tokens = readSpecialTokens(fields, generation, family.defaults, size.vocabulary);
  judgeUnreadFields(fields);

  const weights = new Weights(checkpoint);
  const spec = buildDecoder(family.modelType, size, plan, tokens, weights);
  const unused = weights.unused();
  if (unused.length > 0) {
    const more = unused.length > 4 ? ` and ${unused.length - 4} more` : '';
    fields.warn(`tensors that the config does not ask for have no effect: ${unused.slice(0, 4).join(', ')}${more}.`);
  }
  return { spec, warnings: fields.warnings };
}

function familyOf(config: ConfigFields): Family {
  const type = config.optionalText('model_type');
  const architectures = config.texts('architectures') ?? [];
  const byType = families.find(({ modelType }) => modelType === type);
  if (type !== undefined && byType === undefined) {
    config.fail('model_type', `is ${show(type)}`, families.map(({ modelType }) => show(modelType)).join(', '));
  }
  const byArchitecture = families.find(({ architecture }) => architectures.includes(architecture));
  if (byArchitecture === undefined || (byType !== undefined && byType !== byArchitecture)) {
    const allowed = byType === undefined ? families : [byType];
    const found = architectures.length === 0 ? 'is missing or empty' : `is ${show(architectures)}`;
    config.fail('architectures', found, allowed.map(({ architecture }) => show([architecture])).join(' or '));
  }
  return byArchitecture;
}
