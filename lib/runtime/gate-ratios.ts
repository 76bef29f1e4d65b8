/** The ratios of gates that a pruning run stored for running with fewer experts (the experts stage's `skipExperts`). */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { manifestName } from '../checkpoint/file-names.ts';
import { readJsonFile } from '../checkpoint/json-file.ts';
import { EspalierError } from '../errors.ts';
import type { FeedForwardPart, ModelSpec } from '../models/spec.ts';

/**
 * The spec with routers that leave out experts of small gates: of the experts in the second half of a token's choice, from
 * the first on whose gate is below the stored median of its ratio to that of the token's first, none is run. For two experts a
 * token this is the rule of Lu et al. 2024 (dynamic expert skipping, arXiv 2402.14800, section 3.3), and of four it leaves
 * out as much as of two, about a quarter; by the medians of all but the first it would be nearly half.
 *
 * @throws USAGE where `dir` holds no ratios, or they do not fit the model
 */
export function skippingExperts(dir: string, spec: ModelSpec): ModelSpec {
  const stored = readLayers(dir);
  const layers = spec.layers.map((layer, i) => ({
    ...layer,
    feedForward: layer.feedForward.map((part, index): FeedForwardPart => {
      if (part.kind === 'dense' || part.router.topK === 1) return part;
      const skipBelow = stored[i]?.gateRatios?.[index];
      if (!isRatios(skipBelow, part.router.topK - 1)) {
        throw missing(dir, `has no ratios for the ${part.router.topK} experts a token of layer ${i}`);
      }
      const kept = Math.ceil(part.router.topK / 2);
      const half = skipBelow.map((ratio, behind) => (behind + 1 < kept ? 0 : ratio));
      return { ...part, router: { ...part.router, skipBelow: half } };
    }),
  }));
  return { ...spec, layers };
}

function readLayers(dir: string): { gateRatios?: unknown[] }[] {
  const path = join(dir, manifestName);
  if (!existsSync(path)) throw missing(dir, 'is missing');
  const { layers } = readJsonFile(path, 'USAGE', 2 ** 28).value;
  return Array.isArray(layers) ? layers.map((layer) => (Array.isArray(layer?.gateRatios) ? layer : {})) : [];
}

function isRatios(value: unknown, count: number): value is number[] {
  return (
    Array.isArray(value) && value.length === count && value.every((ratio) => typeof ratio === 'number' && ratio >= 0)
  );
}

function missing(dir: string, problem: string): EspalierError {
  return new EspalierError(
    'USAGE',
    `skipExperts needs the ratios that pruning measures with skipExperts in the experts stage, but ${manifestName} ${problem}`,
    { file: join(dir, manifestName), field: 'skipExperts' },
  );
}
