import { describe, expect, it } from 'vitest';
import { EspalierError } from '../lib/errors.ts';
import { resolveSampling, type SamplingOptions } from '../lib/runtime/sampling.ts';

describe('sampling options', () => {
  it('are greedy by default', () => {
    expect(resolveSampling({})).toEqual({
      temperature: 0,
      topK: 0,
      topP: 1,
      minP: 0,
      repetitionPenalty: 1,
      presencePenalty: 0,
      frequencyPenalty: 0,
      logitBias: new Map(),
      topLogprobs: undefined,
      seed: 0n,
      stop: [],
      maxTokens: 256,
    });
  });

  it.each([{ topK: 40 }, { topP: 0.9 }, { minP: 0.05 }])('sample at temperature 1 when only %j is given', (options) => {
    expect(resolveSampling(options)).toMatchObject({ ...options, temperature: 1 });
    expect(resolveSampling({ ...options, temperature: 0 }).temperature).toBe(0);
  });

  it('keep every value inside the allowed range, its ends included', () => {
    const low = {
      temperature: 0,
      topK: 0,
      topP: Number.MIN_VALUE,
      minP: 0,
      repetitionPenalty: 1e-6,
      seed: 0,
      maxTokens: 1,
    };
    expect(resolveSampling(low)).toMatchObject({ ...low, seed: 0n });
    const seed = 2n ** 64n - 1n;
    const high = {
      temperature: 100,
      topK: 2 ** 31 - 1,
      topP: 1,
      minP: 0.999,
      repetitionPenalty: 100,
      seed,
      maxTokens: 2 ** 31 - 1,
    };
    expect(resolveSampling(high)).toMatchObject(high);
  });

  it('take a number or a bigint as seed, and one stop string or several', () => {
    expect(resolveSampling({ seed: 7 }).seed).toBe(7n);
    expect(resolveSampling({ seed: 7n }).seed).toBe(7n);
    expect(resolveSampling({ stop: '\n' }).stop).toEqual(['\n']);
    expect(resolveSampling({ stop: ['a', '🍎'] }).stop).toEqual(['a', '🍎']);
  });

  it('treat undefined as not given', () => {
    expect(resolveSampling({ topK: undefined, seed: undefined, stop: undefined })).toEqual(resolveSampling({}));
  });
});

describe('a value that is not allowed', () => {
  const bad: [keyof SamplingOptions, unknown[], string][] = [
    ['temperature', [-1, Number.NaN, Number.POSITIVE_INFINITY, 1e308, '0', null], 'from 0 (greedy) to 100'],
    ['topK', [-2, 1.5, 1e9 * 4, Number.NaN, '5'], 'from 0 (all tokens) to 2147483647'],
    ['topP', [0, 2, -0.5, Number.NaN, '1'], 'above 0 and at most 1'],
    ['minP', [1, -0.1, Number.NaN], 'from 0 to below 1'],
    ['repetitionPenalty', [0, -1, 1e9, Number.NaN], 'above 0 and at most 100'],
    ['presencePenalty', [-2.1, 3, Number.NaN, '1'], 'from -2 to 2'],
    ['frequencyPenalty', [-2.1, 1e9, Number.NaN], 'from -2 to 2'],
    [
      'logitBias',
      [
        { '-1': 1 },
        { a: 1 },
        { 1.5: 1 },
        { 5: 101 },
        { 5: Number.NaN },
        { 5: '1' },
        [[5, 1]],
        Object.fromEntries(Array.from({ length: 1025 }, (_, i) => [i, 1])),
      ],
      'at most 1024 token ids',
    ],
    ['topLogprobs', [-1, 21, 1.5, Number.NaN], 'from 0 to 20'],
    ['seed', [-1, 1.5, -1n, 2n ** 64n, 2 ** 60, 'seven'], 'from 0 to 2^64 - 1'],
    ['stop', ['', [''], 5, [5], 'x'.repeat(1025), new Array(65).fill('x'), ['\ud83c']], 'at most 64'],
    ['maxTokens', [0, -1, 1e12, 1.5, Number.NaN], 'from 1 to 2147483647'],
  ];
  const cases = bad.flatMap(([option, values, range]) => values.map((value) => [option, value, range] as const));

  it.each(cases)('of %s: %s names the option and the range', (option, value, range) => {
    let error: unknown;
    try {
      resolveSampling({ [option]: value } as SamplingOptions);
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(EspalierError);
    expect(error).toMatchObject({ code: 'USAGE', field: option });
    const { message } = error as EspalierError;
    expect(message).toContain(`${option} must be`);
    expect(message).toContain(range);
    expect(message.length).toBeLessThan(250);
  });

  it('is named by the flag that the command line knows it by', () => {
    expect(() => resolveSampling({ topK: -1 }, () => '--top-k')).toThrow(/^--top-k must be .*; found -1$/);
  });
});

describe('an option that does not exist', () => {
  it('is refused, with the options that do', () => {
    const options = { top_k: 5 } as SamplingOptions;
    expect(() => resolveSampling(options)).toThrow(/no option top_k; allowed are temperature, topK/);
  });

  it.each([null, 5, 'greedy'])('as is %j in place of options', (options) => {
    expect(() => resolveSampling(options as unknown as SamplingOptions)).toThrow(
      expect.objectContaining({ code: 'USAGE' }),
    );
  });
});
