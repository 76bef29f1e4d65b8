import { writeFileSync } from 'node:fs';
import type { Command } from 'commander';
import { fromSystemError } from '../../errors.ts';
import type { ActivationType } from '../../runtime/arithmetic.ts';
import type { Context, Start } from '../context.ts';
import { activationsOption, addGlobalOptions, decimal } from '../options.ts';

interface Options {
  sizes?: string;
  formats?: string;
  batch: string;
  gigabytes: number;
  sparsity: number;
  activations: ActivationType;
}

/** `espalier bench kernels` */
export function defineBenchKernels(bench: Command, start: Start): void {
  const command = bench
    .command('kernels')
    .description('Products of random matrices in packed formats. Measures best when nothing else runs.')
    .option(
      '--sizes <list>',
      'such as 14336x4096,4096x14336 (default: 4096 columns, rows by --gigabytes; GPU: 14336x4096)',
    )
    .option(
      '--formats <list>',
      'such as "dense bf16,bitmap int4,2:4 int8" (default: all three of bf16, int8 and int4; GPU: of bf16)',
    )
    .option('--batch <list>', 'tokens multiplied at once, such as 1,4,16', '1')
    .option(
      '--gigabytes <g>',
      'weights that a measurement goes through, as dense bf16; more than the caches hold',
      decimal('a number above 0 and at most 1000000', (g) => g > 0 && g <= 1e6),
      1.5,
    )
    .option(
      '--sparsity <p>',
      'fraction of zeros in bitmaps',
      decimal('a number above 0 and below 1', (p) => p > 0 && p < 1),
      0.5,
    )
    .addOption(activationsOption());
  start<Options>(addGlobalOptions(command, { json: 'stream or file', gpu: 'one' }), run);
}

async function run({ options, terminal, signal }: Context<Options>): Promise<undefined> {
  const { parseBatch, parseFormats, parseSizes } = await import('../../bench/lists.ts');
  const { benchKernels } = await import('../../bench/kernels.ts');
  const { describeKernelBench } = await import('../../bench/kernels-text.ts');
  const { device, gigabytes, sparsity, activations, threads, seed, json } = options;
  const report = await benchKernels({
    device,
    sizes: options.sizes === undefined ? undefined : parseSizes(options.sizes),
    formats: options.formats === undefined ? undefined : parseFormats(options.formats),
    batch: parseBatch(options.batch),
    gigabytes,
    sparsity,
    activations,
    threads,
    seed,
    signal,
    onProgress: (fraction, doing) => terminal.progress(fraction, doing),
  });
  terminal.endProgress();
  if (typeof json === 'string') writeReport(json, report);
  terminal.document(report);
  terminal.print(describeKernelBench(report));
}

function writeReport(path: string, report: object): void {
  try {
    writeFileSync(path, `${JSON.stringify(report, null, 2)}\n`);
  } catch (error) {
    throw fromSystemError(error, 'write', path);
  }
}
