/** Rotary frequencies against those of transformers. */
import { describe, expect, test } from 'vitest';
import { ConfigFields } from '../lib/models/config.ts';
import { readRope } from '../lib/models/rope.ts';
import { describeFamily, failure, golden, type Json, readJson } from './support/families.ts';

interface RopeCase {
  name: string;
  headDim: number;
  config: Json & { rope_parameters: Json };
  inverseFrequencies: number[];
  scale: number;
}

describe('rotary frequencies', () => {
  const cases = readJson<RopeCase[]>(new URL('rope.json', golden));
  const rope = (config: Json, headDim: number) => {
    const fields = new ConfigFields(config);
    return { ...readRope(fields, headDim, 1e4), warnings: fields.warnings };
  };
  const plain = { max_position_embeddings: 4096 };

  test('there are cases of every scaling', () => {
    expect(new Set(cases.map(({ config }) => config.rope_parameters.rope_type))).toEqual(
      new Set(['default', 'linear', 'yarn', 'llama3']),
    );
  });

  for (const { name, headDim, config, inverseFrequencies, scale } of cases) {
    test(`${name}: to the last float32 places of transformers, from either spelling`, () => {
      const { rope_theta, rope_type, ...others } = config.rope_parameters;
      const { rope_parameters: _, ...outside } = config;
      const old = {
        ...outside,
        rope_theta,
        rope_scaling: rope_type === 'default' ? null : { type: rope_type, ...others },
      };
      const nested = { full_attention: config.rope_parameters, sliding_attention: { ...config.rope_parameters } };
      for (const spelling of [config, old, { ...outside, rope_parameters: nested }]) {
        const found = rope(spelling, headDim);
        expect(found.warnings).toEqual([]);
        expect(found.inverseFrequencies).toHaveLength(headDim / 2);
        expect(found.scale).toBeCloseTo(scale, 12);
        for (const [i, expected] of inverseFrequencies.entries()) {
          // Two units in the last place: torch's vector pow is not the correctly rounded one.
          expect(Math.abs(found.inverseFrequencies[i]! / expected - 1)).toBeLessThanOrEqual(2 ** -22);
        }
      }
    });
  }

  test('a config that says nothing has the theta of its family', () => {
    expect(rope(plain, 4).inverseFrequencies[1]).toBe(Math.fround(0.01));
    expect(describeFamily('mixtral-fused', { rope_parameters: null }).spec.rope.inverseFrequencies[8]).toBeCloseTo(
      1e-3,
      9,
    );
  });

  test('the extension of linear and yarn counts towards the positions', () => {
    const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 4096 };
    expect(rope({ ...plain, rope_scaling: yarn }, 16).maxPositions).toBe(16384);
    expect(rope({ ...plain, rope_scaling: { type: 'linear', factor: 2 } }, 16).maxPositions).toBe(8192);
    expect(rope(plain, 16).maxPositions).toBe(4096);
  });

  test('contradictions are told, and the choice is that of transformers', () => {
    const twice = rope({ ...plain, rope_theta: 100, rope_parameters: { rope_theta: 10_000 } }, 4);
    expect(twice.inverseFrequencies[1]).toBe(Math.fround(0.01));
    expect(twice.warnings).toHaveLength(1);
    const both = { rope_scaling: { type: 'linear', factor: 2 }, rope_parameters: { rope_type: 'linear', factor: 4 } };
    expect(rope({ ...plain, ...both }, 4).inverseFrequencies[0]).toBe(0.5);
    expect(rope({ ...plain, ...both }, 4).warnings.join()).toContain('rope_scaling is used');
    const useless = rope({ ...plain, rope_parameters: { rope_type: 'default', factor: 8 } }, 4);
    expect([useless.inverseFrequencies[0], useless.warnings.length]).toEqual([1, 1]);
    expect(useless.warnings[0]).toContain('factor');
  });

  const refused: [string, Json, string][] = [
    ['dynamic', { rope_scaling: { type: 'dynamic', factor: 2 } }, 'rope_scaling.rope_type'],
    ['longrope', { rope_parameters: { rope_type: 'longrope', factor: 2 } }, 'rope_parameters.rope_type'],
    ['a string', { rope_parameters: 'yarn' }, 'rope_parameters'],
    ['no factor', { rope_parameters: { rope_type: 'linear' } }, 'rope_parameters.factor'],
    ['a negative factor', { rope_parameters: { rope_type: 'linear', factor: -1 } }, 'rope_parameters.factor'],
    ['theta NaN', { rope_theta: Number.NaN }, 'rope_theta'],
    ['theta Infinity', { rope_parameters: { rope_theta: Number.POSITIVE_INFINITY } }, 'rope_parameters.rope_theta'],
    ['theta 0', { rope_theta: 0 }, 'rope_theta'],
    ['theta as text', { rope_theta: '10000' }, 'rope_theta'],
    ['half rotation', { partial_rotary_factor: 0.5 }, 'partial_rotary_factor'],
    [
      'half rotation inside',
      { rope_parameters: { partial_rotary_factor: 0.5 } },
      'rope_parameters.partial_rotary_factor',
    ],
    ['no positions', { max_position_embeddings: 0 }, 'max_position_embeddings'],
    [
      'layer types that differ',
      { rope_parameters: { full_attention: { rope_theta: 1e6 }, sliding_attention: { rope_theta: 1e4 } } },
      'rope_parameters',
    ],
    [
      'a mixture of nestings',
      { rope_parameters: { full_attention: { rope_theta: 1e6 }, rope_theta: 1e4 } },
      'rope_parameters',
    ],
    [
      'bands the wrong way round',
      { rope_parameters: { rope_type: 'llama3', factor: 8, low_freq_factor: 4, high_freq_factor: 1 } },
      'rope_parameters.high_freq_factor',
    ],
  ];
  test.each(refused)('%s is refused by name', (_, config, field) => {
    const error = failure(() => rope({ ...plain, ...config }, 16));
    expect([error.code, error.field]).toEqual(['CONFIG', field]);
  });
});
