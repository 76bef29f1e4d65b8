/**
 * Rotary position embedding: inverse frequencies and the factor on cosines and sines, for the scalings that the families
 * use. Values follow transformers, rounding to float32 where it works in float32.
 *
 * - linear: Chen et al. 2023, "Extending Context Window of Large Language Models via Position Interpolation", §2.3
 * - yarn: Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models", §3.2 to §3.4
 * - llama3: the frequency bands of Llama 3.1 (long wavelengths divided by `factor`, a ramp between)
 */
import { type ConfigFields, limits, show } from './config.ts';
import type { RopeSpec } from './spec.ts';

const f32 = Math.fround;

export interface Rope extends RopeSpec {
  /** Positions the model is made for, with linear or yarn extension counted. */
  readonly maxPositions: number;
}

/**
 * Reads `rope_parameters` (transformers 5, also nested by layer type if all are equal), or `rope_theta` and
 * `rope_scaling` (before). `CONFIG` where the type is not default, linear, yarn or llama3, or a parameter is wrong.
 *
 * @param defaultTheta The family's `rope_theta` where the config has none.
 */
export function readRope(config: ConfigFields, headDim: number, defaultTheta: number): Rope {
  const maxPositions = config.integer('max_position_embeddings', { max: limits.positions });
  const parameters = ropeParameters(config);
  const outerTheta = config.optionalNumber('rope_theta');
  const innerTheta = parameters?.optionalNumber('rope_theta');
  if (outerTheta !== undefined && innerTheta !== undefined && outerTheta !== innerTheta) {
    config.warn(`rope_theta is ${outerTheta}, but the rope parameters say ${innerTheta}, which is used.`);
  }
  const theta = innerTheta ?? outerTheta ?? defaultTheta;
  requireFullRotation(config);
  if (parameters !== undefined) requireFullRotation(parameters);
  const plain = inverseFrequencies(theta, headDim);
  const type = parameters?.optionalText('rope_type') ?? parameters?.optionalText('type') ?? 'default';
  if (parameters === undefined) return { inverseFrequencies: plain, scale: 1, maxPositions };
  // Asked for under both names, so that the older one does not count as unknown.
  parameters.raw('type');
  const rope = scaled(type, parameters, config, { plain, theta, headDim, maxPositions });
  const unread = parameters.unread();
  if (unread.length > 0) config.warn(`rope parameters that the type ${type} does not use: ${unread.join(', ')}.`);
  return rope;
}

interface Plain {
  readonly plain: Float32Array;
  readonly theta: number;
  readonly headDim: number;
  readonly maxPositions: number;
}

function scaled(type: string, parameters: ConfigFields, config: ConfigFields, base: Plain): Rope {
  switch (type) {
    case 'default':
      return { inverseFrequencies: base.plain, scale: 1, maxPositions: base.maxPositions };
    case 'linear': {
      const factor = parameters.number('factor');
      const maxPositions = extended(base.maxPositions, base.maxPositions * factor);
      return { inverseFrequencies: base.plain.map((value) => f32(value / f32(factor))), scale: 1, maxPositions };
    }
    case 'yarn':
      return yarn(parameters, originalPositions(parameters, config, base.maxPositions), base);
    case 'llama3':
      return llama3(parameters, originalPositions(parameters, config, base.maxPositions), base);
    default:
      return parameters.fail('rope_type', `is ${show(type)}`, '"default", "linear", "yarn" or "llama3"');
  }
}

/** theta ^ (−2i / headDim), computed in float32. */
function inverseFrequencies(theta: number, headDim: number): Float32Array {
  return Float32Array.from({ length: headDim / 2 }, (_, i) => 1 / f32(f32(theta) ** f32((2 * i) / headDim)));
}

function yarn(parameters: ConfigFields, original: number, { plain, theta, headDim, maxPositions }: Plain): Rope {
  const factor = parameters.optionalNumber('factor') ?? maxPositions / original;
  const betaFast = parameters.optionalNumber('beta_fast', 'zero') || 32;
  const betaSlow = parameters.optionalNumber('beta_slow', 'zero') || 1;
  const mscale = parameters.optionalNumber('mscale', 'zero');
  const mscaleAllDim = parameters.optionalNumber('mscale_all_dim', 'zero');
  const magnitude = (weight: number) => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1);
  const inferred = mscale && mscaleAllDim ? magnitude(mscale) / magnitude(mscaleAllDim) : magnitude(1);
  const scale = parameters.optionalNumber('attention_factor') ?? inferred;
  if (theta === 1) parameters.fail('rope_theta', 'is 1', 'other than 1 for yarn');

  // The dimension whose wavelength fits `rotations` times into the original context.
  const dimension = (rotations: number) =>
    (headDim * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
  const truncate = parameters.boolean('truncate', true);
  const from = Math.max(truncate ? Math.floor(dimension(betaFast)) : dimension(betaFast), 0);
  let to = Math.min(truncate ? Math.ceil(dimension(betaSlow)) : dimension(betaSlow), headDim - 1);
  if (from === to) to += 0.001;

  const frequencies = plain.map((extrapolated, i) => {
    const power = f32(f32(theta) ** f32((2 * i) / headDim));
    const interpolated = f32(1 / f32(f32(factor) * power));
    const ramp = f32(Math.min(1, Math.max(0, f32(f32(i - f32(from)) / f32(to - from)))));
    const kept = f32(1 - ramp);
    return f32(f32(interpolated * f32(1 - kept)) + f32(extrapolated * kept));
  });
  return { inverseFrequencies: frequencies, scale, maxPositions: extended(maxPositions, original * factor) };
}

function llama3(parameters: ConfigFields, original: number, { plain, maxPositions }: Plain): Rope {
  const factor = parameters.number('factor');
  const low = parameters.number('low_freq_factor');
  const high = parameters.number('high_freq_factor');
  if (high <= low) parameters.fail('high_freq_factor', `is ${high}`, `above low_freq_factor, which is ${low}`);
  const longest = f32(original / low);
  const shortest = f32(original / high);
  const frequencies = plain.map((value) => {
    const wavelength = f32(f32(2 * Math.PI) / value);
    if (wavelength < shortest) return value;
    if (wavelength > longest) return f32(value / f32(factor));
    const smooth = f32(f32(f32(original / wavelength) - f32(low)) / f32(high - low));
    return f32(f32(f32(f32(1 - smooth) * value) / f32(factor)) + f32(smooth * value));
  });
  return { inverseFrequencies: frequencies, scale: 1, maxPositions };
}

function extended(stated: number, scaledUp: number): number {
  return Math.min(limits.positions, Math.max(stated, Math.floor(scaledUp)));
}

function requireFullRotation(fields: ConfigFields): void {
  const factor = fields.number('partial_rotary_factor', 1);
  if (factor !== 1) fields.fail('partial_rotary_factor', `is ${factor}`, '1: these families rotate whole heads');
}

/** A field beside the rope parameters goes before the one inside them, as in transformers. */
function originalPositions(parameters: ConfigFields, config: ConfigFields, maxPositions: number): number {
  const field = 'original_max_position_embeddings';
  const inside = parameters.optionalInteger(field, { max: limits.positions });
  return config.optionalInteger(field, { max: limits.positions }) ?? inside ?? maxPositions;
}

/** The object that holds the rope parameters, whichever name and nesting it has. */
function ropeParameters(config: ConfigFields): ConfigFields | undefined {
  const old = config.object('rope_scaling');
  const current = config.object('rope_parameters');
  if (old !== undefined && old.names().length > 0) {
    if (current !== undefined) config.warn('rope_scaling and rope_parameters are both given; rope_scaling is used.');
    return flat(old, config, 'rope_scaling');
  }
  return current === undefined ? undefined : flat(current, config, 'rope_parameters');
}

/** `{full_attention: {…}, sliding_attention: {…}}` is accepted where it says the same of every layer type. */
function flat(parameters: ConfigFields, config: ConfigFields, field: string): ConfigFields {
  const nested = parameters.names().filter((name) => name.endsWith('_attention'));
  const [first, ...others] = nested;
  if (first === undefined) return parameters;
  const mixed = parameters.names().find((name) => !nested.includes(name));
  if (mixed !== undefined) {
    config.fail(field, `has ${show(mixed)} beside ${first}`, 'either parameters, or one object a layer type');
  }
  const canonical = (name: string) => {
    const inner = parameters.object(name);
    return JSON.stringify(
      inner
        ?.names()
        .sort()
        .map((key) => [key, inner.raw(key)]),
    );
  };
  const different = others.find((name) => canonical(name) !== canonical(first));
  if (different !== undefined) {
    config.fail(field, `differs between ${first} and ${different}`, 'the same for every layer type');
  }
  return parameters.object(first) ?? config.fail(`${field}.${first}`, 'is missing', 'an object');
}
