/** What a survey says of a layer's experts, against the layer written out in float64. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openCheckpoint } from '../lib/checkpoint/index.ts';
import { describeModel } from '../lib/models/registry.ts';
import { type NativeSurvey, native, runJob } from '../lib/native.ts';
import { nativeLayer } from '../lib/runtime/native-spec.ts';
import { tensorsOf } from './support/checkpoints.ts';
import { floatsOf, product, rowsOf } from './support/floats.ts';
import { familyFolder } from './support/models.ts';
import { temporaryFolder } from './support/raw-safetensors.ts';
import { freshSeed, randomFrom } from './support/steps.ts';

const folder = join(familyFolder, 'mixtral-window');
const [hidden, experts, topK, headDim, heads, kvHeads] = [64, 4, 2, 16, 4, 2];

/** Layer 0 on a sequence of one token, where attention is its value: router logits and the output of every expert. */
function layerOf() {
  const tensors = tensorsOf(folder);
  const matrix = (name: string) => rowsOf(tensors.get(`model.layers.0.${name}.weight`)!);
  const vector = (name: string) => floatsOf(tensors.get(`model.layers.0.${name}.weight`)!);
  const norm = (x: readonly number[], weight: Float64Array) => {
    const scale = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + 1e-5);
    return x.map((value, i) => value * scale * weight[i]!);
  };
  const [v, o, router] = [matrix('self_attn.v_proj'), matrix('self_attn.o_proj'), matrix('block_sparse_moe.gate')];
  const mlps = Array.from({ length: experts }, (_, e) => ({
    gate: matrix(`block_sparse_moe.experts.${e}.w1`),
    up: matrix(`block_sparse_moe.experts.${e}.w3`),
    down: matrix(`block_sparse_moe.experts.${e}.w2`),
  }));
  return (token: readonly number[]) => {
    const values = product(v, norm(token, vector('input_layernorm')));
    const spread = Array.from({ length: heads * headDim }, (_, i) => {
      const head = Math.floor(i / headDim / (heads / kvHeads));
      return values[head * headDim + (i % headDim)]!;
    });
    const mixed = product(o, spread).map((value, i) => value + token[i]!);
    const x = norm(mixed, vector('post_attention_layernorm'));
    const outputs = mlps.map(({ gate, up, down }) => {
      const side = product(up, x);
      return product(
        down,
        product(gate, x).map((value, i) => (value / (1 + Math.exp(-value))) * side[i]!),
      );
    });
    return { logits: product(router, x), outputs };
  };
}

/** Random tokens; none whose choice of experts the last bits of a float32 decide. */
function randomTokens(seed: number, count: number, layer: ReturnType<typeof layerOf>): number[][] {
  const random = randomFrom(seed);
  const tokens: number[][] = [];
  while (tokens.length < count) {
    const token = Array.from({ length: hidden }, () => Math.fround(random() * 2 - 1));
    const sorted = layer(token).logits.sort((a, b) => b - a);
    if (sorted.every((logit, i) => i === 0 || sorted[i - 1]! - logit > 1e-4)) tokens.push(token);
  }
  return tokens;
}

async function survey(tokens: readonly (readonly number[])[], threads: number): Promise<NativeSurvey> {
  using checkpoint = openCheckpoint(folder);
  const { spec } = describeModel(checkpoint.config, checkpoint);
  const { rope, hiddenSize, normEpsilon } = spec;
  const pruner = await runJob(() =>
    native().prunerLoad(nativeLayer(checkpoint, spec.layers[0]!), [...checkpoint.files], {
      gpu: undefined,
      threads,
      rope,
      hiddenSize,
      normEpsilon,
      allowNonfinite: false,
    }),
  );
  const input = join(temporaryFolder(), 'hidden.f32');
  writeFileSync(input, Float32Array.from(tokens.flat()));
  const lengths = new Int32Array(tokens.length).fill(1);
  const request = { input, lengths, logitProducts: true, meanOutputs: true, keep: 2 };
  const [found] = await runJob(() => native().prunerSurvey(pruner, request));
  native().prunerDispose(pruner);
  return found!;
}

const close = (found: ArrayLike<number>, wanted: ArrayLike<number>, what: string) => {
  const scale = Math.max(...Array.from(wanted, Math.abs));
  expect(found.length, what).toBe(wanted.length);
  expect(scale, `${what} is not all 0`).toBeGreaterThan(0);
  for (let i = 0; i < wanted.length; i++) {
    expect(Math.abs(found[i]! - wanted[i]!), `${what}[${i}]`).toBeLessThanOrEqual(1e-4 * scale);
  }
};

test('a survey is what float64 makes of every token, for any number of threads', async () => {
  const layer = layerOf();
  const tokens = randomTokens(freshSeed(), 75, layer);
  const n = experts;
  const wanted = {
    family: new Float64Array(n * 9),
    coactivation: new Float64Array(n * n),
    probabilities: new Float64Array(n),
    logitProducts: new Float64Array(n * n),
    meanOutputs: new Float64Array(n * hidden),
    ratios: [] as number[],
  };
  const squares = new Map<string, number>();
  for (const token of tokens) {
    const { logits, outputs } = layer(token);
    const choose = (among: readonly number[]) => {
      const total = among.reduce((sum, e) => sum + Math.exp(logits[e]!), 0);
      const chosen = [...among].sort((a, b) => logits[b]! - logits[a]!).slice(0, topK);
      const probabilities = chosen.map((e) => Math.exp(logits[e]!) / total);
      const sum = probabilities.reduce((a, b) => a + b);
      return chosen.map((e, i) => ({ e, gate: probabilities[i]! / sum }));
    };
    const z = (among: readonly number[]) => {
      const out = new Float64Array(hidden);
      for (const { e, gate } of choose(among)) for (let h = 0; h < hidden; h++) out[h]! += gate * outputs[e]![h]!;
      return out;
    };
    const all = [0, 1, 2, 3];
    const chosen = choose(all);
    for (const { e, gate } of chosen) {
      const norm = Math.hypot(...outputs[e]!);
      for (let a = 0; a < 3; a++)
        for (let b = 0; b < 3; b++) wanted.family[e * 9 + 3 * a + b]! += gate ** a * norm ** b;
      for (const other of chosen) if (other.e !== e) wanted.coactivation[e * n + other.e]!++;
    }
    wanted.ratios.push(chosen[1]!.gate / chosen[0]!.gate);
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit), 0);
    for (let i = 0; i < n; i++) {
      wanted.probabilities[i]! += Math.exp(logits[i]!) / total;
      for (let j = 0; j < n; j++) wanted.logitProducts[i * n + j]! += logits[i]! * logits[j]!;
      for (let h = 0; h < hidden; h++) wanted.meanOutputs[i * hidden + h]! += outputs[i]![h]! / tokens.length;
    }
    const dense = z(all);
    for (let i = 0; i < n; i++) {
      for (let j = i + 1; j < n; j++) {
        const changed = z([i, j]);
        const square = dense.reduce((sum, value, h) => sum + (value - changed[h]!) ** 2, 0);
        squares.set(`${i} ${j}`, (squares.get(`${i} ${j}`) ?? 0) + square);
      }
    }
  }
  const found = await survey(tokens, 1);
  expect([found.tokens, found.topK, found.experts]).toEqual([tokens.length, topK, n]);
  // Sums of counts are exact.
  expect([...found.coactivation]).toEqual([...wanted.coactivation]);
  for (let e = 0; e < n; e++) expect(found.family[e * 9]).toBe(wanted.family[e * 9]);
  close(found.family, wanted.family, 'family');
  close(found.probabilities, wanted.probabilities, 'probabilities');
  close(found.logitProducts, wanted.logitProducts, 'logitProducts');
  close(found.meanOutputs, wanted.meanOutputs, 'meanOutputs');
  const sorted = wanted.ratios.sort((a, b) => a - b);
  close(found.gateRatios, [sorted[(sorted.length - 1) / 2]!], 'gateRatios');
  const losses = ['0 1', '0 2', '0 3', '1 2', '1 3', '2 3'].map((set) => Math.sqrt(squares.get(set)!));
  close(found.losses, losses, 'losses');
  expect(await survey(tokens, 3)).toEqual(found);
});
