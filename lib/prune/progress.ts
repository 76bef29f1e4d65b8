/** What a pruning run tells while it works. */
import type { LayerStage } from './layer.ts';
import type { LayerReport } from './report.ts';

export type PruneStage = LayerStage | 'write';

export type PruneProgress =
  /** `tokens` calibration tokens in `sequences` sequences are ready; both 0 where the method needs none. */
  | { readonly type: 'calibration'; readonly sequences: number; readonly tokens: number; readonly source: string }
  | { readonly type: 'resumed'; readonly layers: number }
  | {
      readonly type: 'stage';
      readonly layer: number;
      readonly layers: number;
      readonly stage: PruneStage;
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
  stage(layer: number, stage: PruneStage, done: number, total: number): void;
  layerDone(report: LayerReport): void;
}

/** Where each stage ends within a layer, from typical shares of its time; good enough for a bar. */
const stageSpan: Record<PruneStage, readonly [number, number]> = {
  statistics: [0, 0.5],
  prune: [0.5, 0.75],
  forward: [0.75, 0.98],
  write: [0.98, 1],
};

export function progressReporter(
  report: ((progress: PruneProgress) => void) | undefined,
  layers: number,
): ProgressReporter {
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
    stage(layer, stage, done, total) {
      const fraction = total === 0 ? 1 : done / total;
      const [from, to] = stageSpan[stage];
      const finished = layer + from + (to - from) * fraction;
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
