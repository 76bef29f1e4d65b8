// Native work and the threads of Node: none may stop, hold up or bring down the other.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import { Model, prune } from '../lib/index.ts';
import { compiledLibrary } from './support/dist.ts';
import { demoModel } from './support/models.ts';

function scratchFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'espalier-workers-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Runs a script of support/ in a process of its own, which must end within `seconds`. */
function runChild(script: string, args: string[], seconds = 60) {
  const path = fileURLToPath(new URL(`support/${script}`, import.meta.url));
  const child = spawn(process.execPath, [path, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const timer = setTimeout(() => child.kill('SIGKILL'), seconds * 1000);
  let [stdout, stderr] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (part: string) => {
    stdout += part;
  });
  child.stderr.setEncoding('utf8').on('data', (part: string) => {
    stderr += part;
  });
  return new Promise<{ code: number | null; signal: string | null; stdout: string; stderr: string }>((resolve) => {
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr });
    });
  });
}

const prompt = (first: number) => Uint32Array.from({ length: 6 }, (_, i) => (first * 31 + i * 17) % 1000);

async function idsOf(model: Model, first: number): Promise<number[]> {
  const ids: number[] = [];
  for await (const piece of model.generate(prompt(first), { maxTokens: 8, ignoreEos: true })) ids.push(...piece.ids);
  return ids;
}

test('workers ended while they load, step and prune leave the process as it was', async () => {
  const ended = await runChild('worker-child.mjs', [compiledLibrary(), demoModel, scratchFolder()], 110);
  expect(ended).toEqual({ code: 0, signal: null, stdout: '{"load":7,"step":7,"prune":7}\n', stderr: '' });
});

test.each(['load', 'step', 'prune'])('a process may exit while native work goes on: %s', async (kind) => {
  const ended = await runChild('exit-child.mjs', [compiledLibrary(), demoModel, scratchFolder(), kind]);
  expect(ended).toEqual({ code: 7, signal: null, stdout: 'at work\n', stderr: '' });
});

test('fifty generations at the same time give what each gives alone', async () => {
  await using model = await Model.load(demoModel);
  const together = await Promise.all(Array.from({ length: 50 }, (_, i) => idsOf(model, i)));
  for (const [i, ids] of together.entries()) expect(ids, `prompt ${i}`).toEqual(await idsOf(model, i));
});

test('the event loop goes on while a model is pruned', async () => {
  const delay = monitorEventLoopDelay({ resolution: 5 });
  const calibration = [Uint32Array.from({ length: 16 * 512 }, (_, i) => (i * 7919) % 1000)];
  const sequences = { samples: 16, sequenceLength: 512 };
  delay.enable();
  await prune({
    model: demoModel,
    output: join(scratchFolder(), 'out'),
    method: 'sparsegpt',
    calibration,
    ...sequences,
  });
  delay.disable();
  const [p99, longest] = [delay.percentile(99) / 1e6, delay.max / 1e6];
  console.log(
    `event loop while pruning: p99 ${p99.toFixed(1)} ms, longest ${longest.toFixed(1)} ms, ${delay.count} times`,
  );
  expect(delay.count).toBeGreaterThan(50);
  expect(p99).toBeLessThan(50);
});
