/** Runs the compiled command line as its users do. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { constants } from 'node:os';
import { onTestFinished } from 'vitest';

export const root = new URL('../..', import.meta.url).pathname;
export const demoModel = `${root}models/demo`;

export interface RunOptions {
  input?: string | Uint8Array;
  env?: Record<string, string>;
  cwd?: string;
  /** The entry to run instead of this repository's. */
  program?: string;
}

export interface Finished {
  /** Exit status; of one that a signal ended 128 and the signal's number, as a shell has it. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A command line that runs. */
export function start(args: readonly string[], options: RunOptions = {}) {
  const program = options.program ?? `${root}bin/espalier.js`;
  if (!existsSync(`${root}dist/cli/main.js`)) throw new Error('dist/ is missing: run npm run build:ts');
  const { NO_COLOR: _n, FORCE_COLOR: _f, ...environment } = process.env;
  const child = spawn(process.execPath, [program, ...args], {
    cwd: options.cwd ?? root,
    env: { ...environment, ...options.env },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  let [stdout, stderr] = ['', ''];
  const waiting: { text: string; found: () => void }[] = [];
  child.stdout.setEncoding('utf8').on('data', (part: string) => {
    stdout += part;
  });
  child.stderr.setEncoding('utf8').on('data', (part: string) => {
    stderr += part;
    for (const { text, found } of waiting) if (stderr.includes(text)) found();
  });
  child.stdin.on('error', () => {});
  child.stdin.end(options.input ?? '');
  const finished = new Promise<Finished>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code: code ?? 128 + constants.signals[signal!], stdout, stderr }));
  });
  return {
    child,
    finished,
    /** Resolves when `text` was written to stderr; rejects if the program ends before. */
    says(text: string): Promise<void> {
      if (stderr.includes(text)) return Promise.resolve();
      return new Promise((resolve, reject) => {
        waiting.push({ text, found: resolve });
        void finished.then(({ code }) => reject(new Error(`ended with ${code} before it said "${text}":\n${stderr}`)));
      });
    },
  };
}

export function espalier(args: readonly string[], options: RunOptions = {}): Promise<Finished> {
  return start(args, options).finished;
}
