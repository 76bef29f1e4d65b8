/**
 * Models on a GPU against the CPU's float32 path. Where there is no GPU, that is said, and only the refusals are tested.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { convertCheckpoint, type LoadOptions, Model, packCheckpoint, perplexity, prune } from '../lib/index.ts';
import { native } from '../lib/native.ts';
import { demoGoldens, demoModel, families, familyFolder } from './support/models.ts';
import { collectIds, difference, Feed, freshSeed, logitsOf, randomFrom, runBatch } from './support/steps.ts';

const { devices, reason } = native().cudaDevices();
const hasGpu = devices.length > 0;
if (!hasGpu) console.log(`no model runs on a GPU in this test: ${reason}`);

const scratch = mkdtempSync(join(tmpdir(), 'espalier-cuda-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const context = 1024;
/** A part of the evaluation windows, which are token ids. */
const ids = (count: number): Uint32Array => {
  const bytes = readFileSync(join(demoGoldens, 'golden-eval.u16'));
  return Uint32Array.from(new Uint16Array(bytes.buffer, bytes.byteOffset, count));
};

/** The likeliest token, and how far its logit is above the next one's. */
function topTwo(logits: Float32Array): [number, number] {
  let [best, next] = [0, -1];
  for (let i = 1; i < logits.length; i++) {
    if (logits[i]! > logits[best]!) [best, next] = [i, best];
    else if (next < 0 || logits[i]! > logits[next]!) next = i;
  }
  return [best, logits[best]! - logits[next]!];
}

test('a device that there is not is refused with the reason', async () => {
  await expect(Model.load(demoModel, { device: 'cuda:99' })).rejects.toMatchObject({ code: 'DEVICE' });
  if (!hasGpu) {
    const refusal = Model.load(demoModel, { device: 'cuda' });
    await expect(refusal).rejects.toThrow(reason);
  }
  await expect(Model.load(demoModel, { device: 'cuda:0,99' })).rejects.toMatchObject({ code: 'DEVICE' });
  for (const device of ['gpu', 'cuda:', 'cuda:-1', 'cuda:x', 'cuda:0,', 'cuda:1,0,1'] as LoadOptions['device'][]) {
    await expect(Model.load(demoModel, { device })).rejects.toMatchObject({ code: 'USAGE', field: 'device' });
  }
});

describe.runIf(hasGpu)('on a GPU', () => {
  test('what its kernels do not take is refused', async () => {
    const load = (options: LoadOptions) => Model.load(demoModel, { device: 'cuda', ...options });
    await expect(load({ weights: 'int4' })).rejects.toMatchObject({ code: 'USAGE' });
    await expect(load({ kvCache: 'int8' })).rejects.toMatchObject({ code: 'USAGE' });
    await expect(load({ kvTokens: 2 ** 28 })).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' });
  });

  const patterns = [
    { name: 'dense', options: undefined, formats: ['dense bf16'] },
    { name: '2:4', options: { pattern: '2:4' }, formats: ['2:4 bf16'] },
    { name: '16:32', options: { pattern: '16:32' }, formats: ['16:32 bf16'] },
    { name: 'unstructured', options: { sparsity: 0.5 }, formats: ['bitmap bf16'] },
  ] as const;
  describe.each(patterns)('the embedded model, $name', ({ name, options, formats }) => {
    let folder = demoModel;
    let cpu: Model;
    let gpu: Model;
    beforeAll(async () => {
      if (options !== undefined) {
        folder = join(scratch, name.replace(':', '-'));
        await prune({ model: demoModel, output: folder, method: 'magnitude', ...options });
      }
      cpu = await Model.load(folder, { kvTokens: 4 * context });
      gpu = await Model.load(folder, { device: 'cuda', kvTokens: 4 * context });
    });
    afterAll(() => {
      cpu?.dispose();
      gpu?.dispose();
    });

    test('runs in the formats that suit its zeros', () => {
      expect(gpu.info.formats).toEqual(formats);
      expect(gpu.info.kvBytes).toBe(cpu.info.kvBytes);
    });

    test('has the logits, next tokens and perplexity of the CPU', async () => {
      const window = [...ids(context)];
      const wanted = await logitsOf(cpu, window);
      const found = await logitsOf(gpu, window);
      let clear = 0;
      let worst = 0;
      for (const [i, row] of wanted.entries()) {
        worst = Math.max(worst, difference(found[i]!, row));
        const [best, gap] = topTwo(row);
        if (gap <= 0.2) continue;
        clear++;
        expect([i, topTwo(found[i]!)[0]]).toEqual([i, best]);
      }
      expect(clear).toBeGreaterThan(context / 3);
      const data = ids(8 * context);
      const ofCpu = await perplexity({ model: cpu, data, sequenceLength: context });
      const ofGpu = await perplexity({ model: gpu, data, sequenceLength: context });
      const change = ofGpu.perplexity / ofCpu.perplexity - 1;
      console.log(
        `${formats}: logits differ by at most ${worst.toExponential(1)}, ${clear} clear next tokens; ` +
          `perplexity ${ofGpu.perplexity}, CPU ${ofCpu.perplexity}, ${(100 * change).toFixed(5)} %`,
      );
      expect(Math.abs(change)).toBeLessThan(0.001);
    });

    test('gives near the same logits in one chunk, token by token and beside other sequences', async () => {
      const random = randomFrom(freshSeed());
      const window = [...ids(400)];
      const wanted = await logitsOf(cpu, window);
      const near = (found: readonly Float32Array[], first = 0) => {
        for (const [i, row] of found.entries()) expect(difference(row, wanted[first + i]!)).toBeLessThan(0.02);
      };
      for (const longest of [1, 3, 90]) {
        const feeds = [new Feed(gpu), new Feed(gpu), new Feed(gpu)];
        while (feeds[0]!.length < window.length) {
          const slices = feeds.map((feed) => {
            const count = 1 + Math.floor(random() * Math.min(longest, window.length - feed.length));
            return { at: feed.length, tokens: window.slice(feed.length, feed.length + count) };
          });
          const running = feeds.flatMap((feed, i) => (slices[i]!.tokens.length > 0 ? [{ feed, ...slices[i]! }] : []));
          const rows = await runBatch(
            gpu,
            running.map(({ feed, tokens }) => feed.slice(tokens)),
          );
          for (const [i, { at }] of running.entries()) near(rows[i]!, at);
        }
        for (const feed of feeds) feed.release();
      }
    });

    test('generates', async () => {
      const prompt = [...ids(40)];
      const run = (model: Model) => collectIds(model.generate(prompt, { maxTokens: 30, ignoreEos: true }));
      const [found, wanted] = [await run(gpu), await run(cpu)];
      // Beyond a near tie, texts part.
      expect(found).toHaveLength(30);
      expect(found.slice(0, 5)).toEqual(wanted.slice(0, 5));
    });
  });

  // The CPU multiplies int8 weights by int8 activations, which rounds more. Of a prompt, a GPU takes what they stand for
  // rounded to bf16: so does a dense bf16 model of them on the CPU.
  test.each([
    { pattern: undefined, formats: ['dense int8'] },
    { pattern: '2:4', formats: ['2:4 int8'] },
  ] as const)('int8 weights have the logits of those that they stand for, $pattern', async ({ pattern, formats }) => {
    const at = (name: string) => join(scratch, `int8-${pattern?.replace(':', '-')}-${name}`);
    let source = demoModel;
    if (pattern !== undefined) {
      source = at('pruned');
      await prune({ model: demoModel, output: source, method: 'magnitude', pattern });
    }
    await packCheckpoint({ from: source, weights: 'int8', output: at('packed') });
    await convertCheckpoint({ from: at('packed'), to: 'dense', output: at('dense') });
    const window = [...ids(400)];
    await using cpu = await Model.load(at('dense'), { format: 'dense' });
    const wanted = await logitsOf(cpu, window);
    // Rounded when it is loaded, and before.
    for (const [folder, weights] of [
      [source, 'int8'],
      [at('packed'), undefined],
    ] as const) {
      await using gpu = await Model.load(folder, { device: 'cuda', weights });
      expect(gpu.info.formats).toEqual(formats);
      for (const [i, row] of (await logitsOf(gpu, window)).entries())
        expect(difference(row, wanted[i]!)).toBeLessThan(0.01);
      const feed = new Feed(gpu);
      for (const [i, id] of window.slice(0, 40).entries()) {
        expect(difference((await feed.logits([id]))[0]!, wanted[i]!)).toBeLessThan(0.02);
      }
      feed.release();
    }
  });

  test('bf16 activations and a bf16 cache change perplexity by little', async () => {
    const data = ids(4 * context);
    const wanted = await perplexity({ model: demoModel, data, sequenceLength: context });
    for (const options of [{ activations: 'bf16' }, { kvCache: 'bf16' }] as const) {
      const found = await perplexity({ model: demoModel, device: 'cuda', ...options, data, sequenceLength: context });
      const change = found.perplexity / wanted.perplexity - 1;
      console.log(`${JSON.stringify(options)}: perplexity changes by ${(100 * change).toFixed(4)} %`);
      expect(Math.abs(change)).toBeLessThan(0.002);
    }
  });

  describe.each(families)('%s', (family) => {
    test('has the logits of the CPU', async () => {
      const folder = join(familyFolder, family);
      const golden = JSON.parse(readFileSync(join(folder, 'golden.json'), 'utf8')) as { ids: number[] };
      // Some of them have float32 and f16 weights, which the GPU takes rounded.
      await using cpu = await Model.load(folder, { weights: 'bf16' });
      await using gpu = await Model.load(folder, { weights: 'bf16', device: 'cuda' });
      const wanted = await logitsOf(cpu, golden.ids);
      const found = await logitsOf(gpu, golden.ids);
      const single: Float32Array[] = [];
      const feed = new Feed(gpu);
      for (const id of golden.ids) single.push(...(await feed.logits([id])));
      feed.release();
      for (const [i, row] of wanted.entries()) {
        expect(difference(found[i]!, row)).toBeLessThan(1e-3);
        expect(difference(single[i]!, row)).toBeLessThan(1e-3);
      }
    });
  });
});
