import type { Command } from 'commander';
import type { Start } from '../context.ts';
import { defineBenchKernels } from './bench-kernels.ts';
import { defineBenchModel } from './bench-model.ts';

/** `espalier bench` */
export function defineBench(program: Command, start: Start): void {
  const bench = program
    .command('bench')
    .description('Measure products of packed formats, or whole models, against what this machine can read.');
  defineBenchKernels(bench, start);
  defineBenchModel(bench, start);
}
