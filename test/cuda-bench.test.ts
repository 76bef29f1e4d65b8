/** Benchmarks on a GPU: their refusals where there is none, their figures where there is one. */
import { expect, test } from 'vitest';
import { whyNotOnGpu } from '../lib/bench/gpu.ts';
import { benchKernels } from '../lib/bench/kernels.ts';
import { parseFormats, parseSizes } from '../lib/bench/lists.ts';
import { benchModels } from '../lib/bench/model.ts';
import { native } from '../lib/native.ts';
import { demoModel } from './support/models.ts';

const { devices, reason } = native().cudaDevices();
const hasGpu = devices.length > 0;
if (!hasGpu) console.log(`nothing is measured on a GPU in this test: ${reason}`);

test('formats that the GPU has no product for are named, with what there is', async () => {
  const why = (format: string, cols = 4096) => whyNotOnGpu(parseFormats(format)[0]!, { rows: 16, cols });
  for (const format of [
    'dense bf16',
    '2:4 bf16',
    '16:32 bf16',
    '24:32 bf16',
    'bitmap bf16',
    'dense int8',
    '2:4 int8',
  ]) {
    expect(why(format)).toBeUndefined();
  }
  for (const format of ['dense f32', '16:32 int8', 'bitmap int8', '4:8 bf16', '2:4 int4', '32:64 int4']) {
    expect(why(format)).toContain('N:32');
  }
  expect(why('dense bf16', 48)).toContain('32 columns');
  const formats = parseFormats('dense int4');
  const refusal = { code: 'USAGE', field: 'formats' };
  await expect(benchKernels({ device: 'cuda', formats })).rejects.toMatchObject(refusal);
});

test('a GPU that there is not is refused with the reason', async () => {
  const models = [{ path: demoModel }];
  await expect(benchKernels({ device: 'cuda:99' })).rejects.toMatchObject({ code: 'DEVICE' });
  await expect(benchModels({ device: 'cuda:99', models })).rejects.toMatchObject({ code: 'DEVICE' });
  await expect(benchKernels({ device: 'cuda:0,1' })).rejects.toMatchObject({ code: 'USAGE', field: 'device' });
  if (hasGpu) return;
  await expect(benchKernels({ device: 'cuda' })).rejects.toThrow(reason);
  await expect(benchModels({ device: 'cuda', models })).rejects.toThrow(reason);
});

/** Of tiles that are full. */
const bitsPerWeight: Record<string, number> = {
  'dense bf16': 16,
  '2:4 bf16': 9,
  '16:32 bf16': 9,
  'dense int8': 8.25,
  '2:4 int8': 5.25,
};

test.runIf(hasGpu)('products are measured, and their figures agree', async () => {
  const sizes = parseSizes('1024x512,96x2048');
  const report = await benchKernels({ device: 'cuda', sizes, gigabytes: 0.2, batch: [1, 40], sparsity: 0.75 });
  expect(report).toMatchObject({ device: 'cuda', processor: devices[0]!.name, matrixUnitGigaflopsPerSecond: null });
  const found = report.rows.map(({ format, rows, batch }) => `${format} ${rows} ${batch}`);
  const formats = ['dense bf16', '2:4 bf16', '16:32 bf16', 'bitmap bf16', 'dense int8', '2:4 int8'];
  expect(found).toEqual(
    sizes.flatMap(({ rows }) => formats.flatMap((format) => [1, 40].map((batch) => `${format} ${rows} ${batch}`))),
  );
  for (const row of report.rows) {
    const seconds = row.microseconds / 1e6;
    expect(row.samples).toBeGreaterThanOrEqual(9);
    expect(row.matrices).toBe(Math.round(0.2e9 / (row.rows * row.cols * 2)));
    expect(row.gigabytesPerSecond / (row.bytes / seconds / 1e9)).toBeCloseTo(1, 9);
    expect(row.fractionOfCeiling / (row.gigabytesPerSecond / row.ceilingGigabytesPerSecond)).toBeCloseTo(1, 9);
    expect(row.fractionOfPlainRead).toBe(row.fractionOfCeiling);
    expect(row.timesDense).toBeGreaterThan(0);
    const bits = bitsPerWeight[row.format];
    if (bits === undefined) expect(row.bitsPerWeight).toBeLessThan(10);
    else expect(row.bitsPerWeight).toBeCloseTo(bits, 9);
  }
});

test.runIf(hasGpu).each(['bf16', 'int8'] as const)('models of %s weights are measured', async (weights) => {
  const models = [{ path: demoModel, weights }];
  const report = await benchModels({ device: 'cuda', models, prompt: 20, tokens: 8, batch: [1, 2] });
  expect(report).toMatchObject({ device: 'cuda', processor: devices[0]!.name });
  const [model] = report.models;
  expect(model!.gpus).toMatchObject([{ gpu: devices[0]!.number }]);
  expect(model!.ceilingGigabytesPerSecond).toBeGreaterThan(100);
  expect(model!.decode.map(({ batch, tokensPerSecond }) => [batch, tokensPerSecond > 0])).toEqual([
    [1, true],
    [2, true],
  ]);
});
