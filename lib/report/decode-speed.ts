/** How fast models decode, measured side by side. */
import { median } from '../median.ts';
import type { Model } from '../runtime/model.ts';

export interface DecodeSpeedOptions {
  prompt: string;
  /** Tokens of each run. @default 256 */
  tokens?: number;
  /** Runs of each model, of which the median counts. @default 5 */
  runs?: number;
  signal?: AbortSignal | undefined;
}

/**
 * Tokens a second of each model, one sequence at a time, prompt not counted. The models take turns, so that what else the
 * machine does falls on all of them.
 */
export async function decodeSpeeds(models: readonly Model[], options: DecodeSpeedOptions): Promise<number[]> {
  const { prompt, tokens = 256, runs = 5, signal } = options;
  const rates: number[][] = models.map(() => []);
  for (let run = 0; run < runs; run++) {
    for (const [i, model] of models.entries()) {
      let first = 0;
      let count = 0;
      for await (const { ids } of model.generate(prompt, { maxTokens: tokens, ignoreEos: true, signal })) {
        if (count === 0) first = performance.now();
        count += ids.length;
      }
      rates[i]!.push((count - 1) / ((performance.now() - first) / 1000));
    }
  }
  return rates.map(median);
}
