/** What a pruning run tells while it works. */
import type { LayerReport } from './report.ts';
import type { Step } from './stages/stage.ts';

export type PruneProgress =
  /** `tokens` calibration tokens in `sequences` sequences are ready; both 0 where the method needs none. */
  | { readonly type: 'calibration'; readonly sequences: number; readonly tokens: number; readonly source: string }
  | { readonly type: 'resumed'; readonly layers: number }
  | {
      readonly type: 'stage';
      readonly layer: number;
      readonly layers: number;
      /** What is being done: a step of one of the recipe's stages, `forward` or `write`. */
      readonly stage: string;
      /** Of this stage, 0 to 1. */
      readonly fraction: number;
      /** Of the whole run, 0 to 1. */
      readonly overall: number;
      /** Undefined until enough of the run is done to tell. */
      readonly secondsLeft: number | undefined;
    }
  | { readonly type: 'layer'; readonly report: LayerReport }
  | { readonly type: 'warning'; readonly message: string };

export interface ProgressReporter {
  readonly warnings: readonly string[];
  warn(message: string): void;
  calibrated(sequences: number, tokens: number, source: string): void;
  resumed(layers: number): void;
  /** `done` of `total` of the layer's step `step`. */
  step(layer: number, step: number, done: number, total: number): void;
  layerDone(report: LayerReport): void;
}

/** `steps`: what is done to each layer, with typical shares of its time; good enough for a bar. */
export function progressReporter(
  report: ((progress: PruneProgress) => void) | undefined,
  layers: number,
  steps: readonly Step[],
): ProgressReporter {
  const weight = steps.reduce((sum, step) => sum + step.weight, 0);
  const startOf = (step: number) => steps.slice(0, step).reduce((sum, before) => sum + before.weight, 0) / weight;
  const warnings: string[] = [];
  const start = performance.now();
  let skipped = 0;
  return {
    warnings,
    warn(message) {
      warnings.push(message);
      report?.({ type: 'warning', message });
    },
    calibrated(sequences, tokens, source) {
      report?.({ type: 'calibration', sequences, tokens, source });
    },
    resumed(count) {
      skipped = count;
      report?.({ type: 'resumed', layers: count });
    },
    step(layer, step, done, total) {
      const fraction = total === 0 ? 1 : done / total;
      const { name: stage, weight: share } = steps[step]!;
      const finished = layer + startOf(step) + (share / weight) * fraction;
      const seconds = (performance.now() - start) / 1000;
      const worked = finished - skipped;
      const secondsLeft = worked < 0.1 ? undefined : (seconds / worked) * (layers - finished);
      report?.({ type: 'stage', layer, layers, stage, fraction, overall: finished / layers, secondsLeft });
    },
    layerDone(layerReport) {
      report?.({ type: 'layer', report: layerReport });
    },
  };
}
