import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from 'commander';
import { EspalierError } from '../../errors.ts';
import type { Start } from '../context.ts';

/** `espalier build` */
export function defineBuild(program: Command, start: Start): void {
  const command = program
    .command('build')
    .description('Compile the native addon here, where no prebuilt one fits. Needs g++, and cmake or make.');
  start(command, run);
}

async function run(): Promise<number> {
  const { packageRoot } = await import('../../native.ts');
  const script = join(packageRoot, 'scripts', 'build-native.mjs');
  if (!existsSync(script)) {
    throw new EspalierError('IO', `${script} is missing; install espalier again`, { file: script });
  }
  const child = spawn(process.execPath, [script], { cwd: packageRoot, stdio: 'inherit' });
  return await new Promise((resolve, reject) => {
    child.on('error', (cause) => reject(new EspalierError('IO', `cannot run ${script}: ${cause.message}`, { cause })));
    // The compiler gets Ctrl-C from the terminal itself.
    child.on('close', (code) => resolve(code === 0 ? 0 : code === null ? 130 : 3));
  });
}
