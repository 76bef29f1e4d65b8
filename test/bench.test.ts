/** Measurements: that figures agree with each other and with what was asked, never how fast this machine is. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { benchKernels, type KernelBenchReport, type KernelBenchRow } from '../lib/bench/kernels.ts';
import {
  type BenchFormat,
  defaultFormats,
  formatName,
  parseBatch,
  parseFormats,
  parseSizes,
} from '../lib/bench/lists.ts';
import type { ModelBenchReport } from '../lib/bench/model.ts';
import { formatSupport, readCeiling, SparseMatrix } from '../lib/kernels.ts';
import { median } from '../lib/median.ts';
import { native } from '../lib/native.ts';
import { checkCublasLt, type DoctorReport } from '../lib/report/doctor.ts';
import { demoModel, espalier } from './support/cli.ts';

const scratch = mkdtempSync(join(tmpdir(), 'espalier-bench-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Bits of a weight where they do not depend on chance: 16-bit scales of 64, masks of a bit, halves at N:M. */
const exactBits: Record<string, number> = {
  'dense bf16': 16,
  '2:4 bf16': 9,
  'dense int8': 8.25,
  '2:4 int8': 5.25,
  'dense int4': 4.25,
  '2:4 int4': 3.25,
  '32:64 int4': 3.25,
};

/** Of N:M the processor's list names 2:4 for all. */
function isExpanded({ format, values }: BenchFormat): boolean {
  return native()
    .features()
    .expanded.includes(`${format.replace(/^\d+:\d+$/, '2:4')} ${values}`);
}

function expectConsistent(row: KernelBenchRow, all: readonly KernelBenchRow[]): void {
  const seconds = row.microseconds / 1e6;
  const weights = row.rows * row.cols;
  expect(row.microseconds).toBeGreaterThan(0);
  expect(row.samples).toBeGreaterThanOrEqual(9);
  expect(row.bitsPerWeight).toBeCloseTo((row.bytes * 8) / weights, 9);
  expect(row.gigabytesPerSecond / (row.bytes / seconds / 1e9)).toBeCloseTo(1, 9);
  expect(row.fractionOfCeiling / (row.gigabytesPerSecond / row.ceilingGigabytesPerSecond)).toBeCloseTo(1, 9);
  expect(row.fractionOfPlainRead / (row.gigabytesPerSecond / row.plainReadGigabytesPerSecond)).toBeCloseTo(1, 9);
  const ideal = (weights * 2) / (row.ceilingGigabytesPerSecond * 1e9);
  expect(row.timesIdealDenseBf16 / (ideal / seconds)).toBeCloseTo(1, 9);
  const plain = (weights * 2) / (row.plainReadGigabytesPerSecond * 1e9);
  expect(row.timesPlainDenseBf16 / (plain / seconds)).toBeCloseTo(1, 9);
  expect(row.denseGigaflopsPerSecond / ((2 * weights * row.batch) / seconds / 1e9)).toBeCloseTo(1, 9);
  const dense = all.find(
    (other) =>
      other.format === `dense ${row.format.split(' ')[1]}` && other.rows === row.rows && other.batch === row.batch,
  );
  if (dense === undefined) expect(row.timesDense).toBeNull();
  else expect(row.timesDense! / (dense.microseconds / row.microseconds)).toBeCloseTo(1, 9);
}

describe('lists', () => {
  test('are read, in any spelling of their separators', () => {
    expect(parseFormats('dense bf16, bitmap int4,2:4  int8')).toEqual([
      { format: 'dense', values: 'bf16' },
      { format: 'bitmap', values: 'int4' },
      { format: '2:4', values: 'int8' },
    ]);
    expect(parseSizes('14336x4096,16X2')).toEqual([
      { rows: 14336, cols: 4096 },
      { rows: 16, cols: 2 },
    ]);
    expect(parseBatch('1, 16')).toEqual([1, 16]);
  });

  test.each(['4:2 bf16', '4:4 int8', '0:4 int8', 'bitmap f32', 'bf16 dense', 'dense', '', 'dense bf16,'])(
    'of formats refuse %j',
    (text) => {
      expect(() => parseFormats(text)).toThrow(
        expect.objectContaining({ code: 'USAGE', field: 'formats', message: expect.stringContaining('N:M') }),
      );
    },
  );

  test('refuse what stands there twice', () => {
    expect(() => parseFormats('dense bf16,dense bf16')).toThrow(/twice/);
  });
});

test('the median of an even count lies between the middle two', () => {
  expect(median([5, 1, 3])).toBe(3);
  expect(median([4, 1, 2, 10])).toBe(3);
  expect(median([])).toBeNaN();
});

describe('parts for own benchmarks', () => {
  test('a read ceiling is a rate; no bytes have none', () => {
    const rate = readCeiling({ bytes: 100_000, threads: 2 });
    expect(rate).toBeGreaterThan(0);
    expect(rate).toBeLessThan(1e15);
    expect(readCeiling({ bytes: 100_000, threads: 2, plain: true })).toBeGreaterThan(0);
    for (const bytes of [0, -1, 1.5, Number.NaN]) {
      expect(() => readCeiling({ bytes })).toThrow(expect.objectContaining({ code: 'USAGE', field: 'bytes' }));
    }
  });

  test('a random matrix multiplies like its own unpacked values', () => {
    const [rows, cols] = [100, 192];
    for (const { format, values } of defaultFormats) {
      if (formatSupport(cols, { format, values }) !== 'taken') continue;
      using matrix = SparseMatrix.random(rows, cols, { format, values, sparsity: 0.6, seed: 5, threads: 2 });
      expect(matrix).toMatchObject({ rows, cols, format: `${format} ${values}` });
      const weights = matrix.unpack();
      const x = Float32Array.from({ length: cols }, () => Math.random() - 0.5);
      const y = matrix.multiply(x);
      const size = Math.sqrt(weights.reduce((sum, w) => sum + w * w, 0) / rows) * Math.hypot(...x);
      for (let row = 0; row < rows; row++) {
        const exact = x.reduce((sum, value, k) => sum + value * weights[row * cols + k]!, 0);
        expect(Math.abs(y[row]! - exact)).toBeLessThan(0.03 * size);
      }
      const zeros = weights.filter((w) => w === 0).length / weights.length;
      if (format === 'bitmap') expect(zeros).toBeGreaterThan(0.5);
      if (format.includes(':')) expect(zeros).toBeGreaterThanOrEqual(0.5);
      expect(zeros).toBeLessThan(1);
    }
  });

  test('formats that are impossible, or expanded here, are told apart', () => {
    expect(formatSupport(64, { format: 'dense' })).toBe('taken');
    expect(formatSupport(30, { format: '2:4' })).toBe('impossible');
    for (const { format, values } of defaultFormats) {
      expect(formatSupport(256, { format, values })).toBe(isExpanded({ format, values }) ? 'expanded' : 'taken');
    }
    expect(() => formatSupport(64, { format: '4:2' })).toThrow(expect.objectContaining({ code: 'USAGE' }));
  });
});

describe('bench kernels', () => {
  test('measures each format, and its figures agree', async () => {
    const file = join(scratch, 'kernels.json');
    const args = ['--gigabytes', '0.002', '--sizes', '256x512', '--batch', '3', '--threads', '2', '--quiet'];
    const { code, stdout, stderr } = await espalier(['bench', 'kernels', ...args, '--json', file]);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const report = JSON.parse(readFileSync(file, 'utf8')) as KernelBenchReport;
    const { model: processor, isa } = native().features();
    expect(report).toMatchObject({ processor, isa, threads: 2, gigabytes: 0.002, sparsity: 0.5 });
    const measured = defaultFormats.filter((format) => !isExpanded(format)).map(formatName);
    const found = report.rows.map(({ format, rows, cols, batch }) => `${format} ${rows}x${cols} ${batch}`);
    expect(found).toEqual(measured.map((format) => `${format} 256x512 3`));
    expect(report.skipped.map(({ format }) => format)).toEqual(defaultFormats.filter(isExpanded).map(formatName));
    for (const row of report.rows) {
      expectConsistent(row, report.rows);
      // 2 MB of dense bf16 are eight matrices of 256 kB.
      expect(row.matrices).toBe(8);
      if (row.format in exactBits) expect(row.bitsPerWeight).toBe(exactBits[row.format]);
      else expect(row.bitsPerWeight).toBeLessThan(exactBits[`dense ${row.format.split(' ')[1]}`]!);
    }
    // The table is the same for people: processor first, then a line for each row.
    const lines = stdout.split('\n');
    expect(lines[0]).toContain(`${processor}, ${isa}, 2 threads; 8 matrices of 256 × 512`);
    for (const { format, microseconds } of report.rows) {
      const shown = microseconds.toFixed(microseconds < 1000 ? 1 : 0);
      expect(lines.some((line) => line.startsWith(format) && line.includes(` ${shown} `))).toBe(true);
    }
  });

  test('one size of 4096 columns stands for the gigabytes; without dense there is nothing to compare with', async () => {
    const formats = parseFormats('bitmap bf16');
    const report = await benchKernels({ gigabytes: 0.004, formats, sparsity: 0.75, batch: [1, 3] });
    expect(report.rows.map(({ batch }) => batch)).toEqual([1, 3]);
    expect(report.rows[0]).toMatchObject({ rows: 480, cols: 4096, matrices: 1, timesDense: null });
    expectConsistent(report.rows[0]!, report.rows);
    // A bit of mask and a quarter of 16 bits.
    expect(report.rows[0]!.bitsPerWeight).toBeGreaterThan(4.9);
    expect(report.rows[0]!.bitsPerWeight).toBeLessThan(5.1);
  });

  test('a format that the columns do not allow is refused before anything is measured, with what is allowed', async () => {
    const { code, stdout } = await espalier([
      'bench',
      'kernels',
      '--formats',
      '2:4 bf16',
      '--sizes',
      '16x30',
      '--json',
    ]);
    expect(code).toBe(2);
    const { error } = JSON.parse(stdout) as { error: { code: string; field: string; message: string } };
    expect(error).toMatchObject({ code: 'USAGE', field: '--formats' });
    expect(error.message).toContain('2:4 bf16');
    expect(error.message).toContain('30 columns');
    expect(error.message).toContain('dense bf16');
  });

  test('more than memory holds is refused, with what is there', async () => {
    const sizes = [{ rows: 2 ** 26, cols: 2 ** 17 }];
    await expect(benchKernels({ sizes, formats: parseFormats('dense bf16') })).rejects.toMatchObject({
      code: 'OUT_OF_MEMORY',
      message: expect.stringContaining('available'),
    });
  });

  test('each size gets as many matrices as the gigabytes take; no gigabytes are refused', async () => {
    const sizes = parseSizes('64x128,256x256');
    const report = await benchKernels({ gigabytes: 0.0005, sizes, formats: parseFormats('dense bf16,2:4 bf16') });
    const found = report.rows.map(({ format, rows, cols, matrices }) => `${format} ${rows}x${cols} ${matrices}`);
    // 500 kB by 16 and by 131 kB.
    expect(found).toEqual(['dense bf16 64x128 31', '2:4 bf16 64x128 31', 'dense bf16 256x256 4', '2:4 bf16 256x256 4']);
    for (const row of report.rows) expectConsistent(row, report.rows);
    await expect(benchKernels({ gigabytes: 0 })).rejects.toMatchObject({ code: 'USAGE', field: 'gigabytes' });
  });

  test('a signal that has fired stops it', async () => {
    await expect(benchKernels({ gigabytes: 0.002, signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ABORTED',
    });
  });
});

describe('bench model', () => {
  test('measures models in turn, and its figures agree', async () => {
    const args = [
      demoModel,
      `${demoModel}@experts=int4,rest=int8`,
      '--batch',
      '1,2',
      '--prompt',
      '20',
      '--tokens',
      '8',
    ];
    const { code, stdout, stderr } = await espalier(['bench', 'model', ...args, '--threads', '2', '--json']);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const report = JSON.parse(stdout) as ModelBenchReport;
    expect(report).toMatchObject({ isa: native().features().isa, threads: 2, promptTokens: 20, decodeSteps: 8 });
    expect(report.models.map(({ weights, expertFormats }) => [weights, expertFormats])).toEqual([
      [{ experts: 'source', rest: 'source' }, ['dense bf16']],
      [{ experts: 'int4', rest: 'int8' }, ['dense int4']],
    ]);
    const [first, second] = report.models;
    expect(second!.bytesPerToken).toBeLessThan(first!.bytesPerToken * 0.6);
    for (const model of report.models) {
      expect(model.loadSeconds).toBeGreaterThan(0);
      expect(model.prefillTokensPerSecond).toBeGreaterThan(0);
      expect(model.bytesPerToken).toBeLessThan(model.weightBytes);
      expect(model.decode.map(({ batch }) => batch)).toEqual([1, 2]);
      for (const [i, at] of model.decode.entries()) {
        expect((at.tokensPerSecond * at.millisecondsPerStep) / 1000).toBeCloseTo(at.batch, 9);
        expect(at.timesFirst / (at.tokensPerSecond / first!.decode[i]!.tokensPerSecond)).toBeCloseTo(1, 9);
      }
      const [alone, together] = model.decode;
      expect(alone!.bytesPerStep).toBe(model.bytesPerToken);
      expect(alone!.gigabytesPerSecond! / ((model.bytesPerToken * alone!.tokensPerSecond) / 1e9)).toBeCloseTo(1, 9);
      expect((alone!.fractionOfCeiling! * model.ceilingGigabytesPerSecond) / alone!.gigabytesPerSecond!).toBeCloseTo(
        1,
        9,
      );
      expect(together).toMatchObject({ bytesPerStep: null, gigabytesPerSecond: null, fractionOfCeiling: null });
    }
  });

  test('shows a row for each model and batch size', async () => {
    const { code, stdout } = await espalier(['bench', 'model', demoModel, '--prompt', '8', '--tokens', '4', '--quiet']);
    expect(code).toBe(0);
    expect(stdout).toMatch(/prompt 8, 4 decode steps; read ceiling [\d.]+ GB\/s/);
    expect(stdout).toMatch(/^demo +source +dense bf16 +[\d.]+ +[\d.]+ +\d+ +1 +[\d.]+ +[\d.]+ +[\d.]+ +\d+ %$/m);
  });

  test('a prompt longer than the context is refused', async () => {
    const { code, stderr } = await espalier(['bench', 'model', demoModel, '--prompt', '1000000']);
    expect(code).toBe(2);
    expect(stderr).toMatch(/--prompt.*context.*\[USAGE\]/);
  });

  test('a part after @ that names no weights belongs to the path', async () => {
    const { code, stderr } = await espalier(['bench', 'model', `${demoModel}@int2`]);
    expect(code).toBe(2);
    expect(stderr).toContain('demo@int2');
  });
});

describe('doctor', () => {
  test('says which sparse formats run dense, and a benchmark of them is refused', async (context) => {
    const isa = native().features().best === 'scalar' ? undefined : 'avx2';
    if (isa === undefined) context.skip('this processor has one kernel set');
    const env = { ESPALIER_ISA: isa! };
    const report = JSON.parse((await espalier(['doctor', '--json'], { env })).stdout) as DoctorReport;
    const formats = report.checks.find(({ name }) => name === 'sparse formats');
    expect(formats).toMatchObject({ status: 'note', value: expect.stringContaining('expanded to dense') });
    expect(formats!.value).toContain('bitmap int8');
    expect(formats!.value).not.toContain('bf16');
    const args = ['bench', 'kernels', '--formats', 'bitmap int8', '--gigabytes', '0.001'];
    const { code, stderr } = await espalier(args, { env });
    expect(code).toBe(2);
    expect(stderr).toMatch(/bitmap int8 cannot be measured: .*allowed here.*bitmap bf16/);
  });

  test('says where cuBLASLt is, or what to do about its absence', () => {
    const survey = { compiled: true, devices: [], reason: '' };
    const file = '13.1.0 in /usr/lib/libcublasLt.so.13';
    expect(checkCublasLt({ ...survey, hasCublasLt: true, cublasLt: file })).toEqual({
      name: 'cuBLASLt',
      status: 'ok',
      value: file,
    });
    const reason = 'cuBLASLt was not found: tried libcublasLt.so.13';
    const check = checkCublasLt({ ...survey, hasCublasLt: false, cublasLt: reason });
    expect(check).toMatchObject({ status: 'note', value: reason, advice: expect.stringContaining('nvidia-cublas') });
  });
});
