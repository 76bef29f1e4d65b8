/**
 * How config.json says which experts a layer has: the same number for every layer, as other runtimes have it, or what
 * expert pruning leaves, which only Espalier reads:
 * - the number as a list, one entry a layer (of layers without experts it says nothing);
 * - `expert_of_row`, where several router rows lead to one expert that was merged: for each layer the expert of every row.
 */
import { type ConfigFields, limits, show } from './config.ts';

export type ExpertCountName = 'num_experts' | 'num_local_experts';

/** The routed experts of one layer. */
export interface LayerRouting {
  /** Experts that are stored. */
  readonly experts: number;
  /** The expert that each router row leads to; undefined where row i leads to expert i. */
  readonly expertOfRow?: readonly number[];
  /** `num_experts_per_tok`, or all router rows of a layer of fewer. */
  readonly topK: number;
}

const mapField = 'expert_of_row';
const topKField = 'num_experts_per_tok';

/**
 * Reads the experts of each layer. Their number has two names, and transformers 5 writes either; both may stand there if
 * they agree.
 */
export function readRouting(
  config: ConfigFields,
  usualName: ExpertCountName,
  layers: number,
): (layer: number) => LayerRouting {
  const counts = readCounts(config, usualName, layers);
  const maps = readMaps(config, layers);
  if (typeof counts === 'number' && maps === undefined) {
    const routing = { experts: counts, topK: config.integer(topKField, { max: counts }) };
    return () => routing;
  }
  const topK = config.integer(topKField, { max: limits.experts });
  return (layer) => {
    const experts = typeof counts === 'number' ? counts : counts[layer]!;
    if (experts === 0) config.fail(usualName, `is 0 for layer ${layer}, which has experts`, 'at least 1');
    const expertOfRow = maps?.[layer] ?? undefined;
    if (expertOfRow === undefined) return { experts, topK: Math.min(topK, experts) };
    const used = new Set(expertOfRow);
    if (used.size !== experts || Math.max(...used) >= experts) {
      config.fail(mapField, `leads layer ${layer} to ${used.size} experts`, `a map onto all ${experts} of them`);
    }
    return { experts, expertOfRow, topK: Math.min(topK, expertOfRow.length) };
  };
}

/** One number for all layers, or one for each. */
function readCounts(config: ConfigFields, usualName: ExpertCountName, layers: number): number | readonly number[] {
  const otherName = usualName === 'num_experts' ? 'num_local_experts' : 'num_experts';
  const other = readCount(config, otherName, layers);
  const usual = readCount(config, usualName, layers);
  if (other !== undefined && usual !== undefined && JSON.stringify(other) !== JSON.stringify(usual)) {
    config.fail(usualName, `is ${show(usual)}`, `equal to ${otherName}, which is ${show(other)}`);
  }
  return usual ?? other ?? config.integer(usualName, { max: limits.experts });
}

function readCount(config: ConfigFields, name: ExpertCountName, layers: number): number | number[] | undefined {
  const range = { max: limits.experts };
  if (!Array.isArray(config.raw(name))) return config.optionalInteger(name, range);
  const counts = config.integers(name, { min: 0, ...range })!;
  if (counts.length !== layers) {
    config.fail(name, `has ${counts.length} entries`, `one number, or one for each of the ${layers} layers`);
  }
  return counts;
}

/** null for a layer whose row i leads to expert i. */
function readMaps(config: ConfigFields, layers: number): readonly (readonly number[] | null)[] | undefined {
  const value = config.raw(mapField);
  if (value === undefined) return undefined;
  const isMap = (map: unknown) =>
    map === null ||
    (Array.isArray(map) &&
      map.length > 0 &&
      map.length <= limits.experts &&
      map.every((expert) => Number.isInteger(expert) && expert >= 0 && expert < limits.experts));
  if (!Array.isArray(value) || value.length !== layers || !value.every(isMap)) {
    config.fail(
      mapField,
      `is ${show(value)}`,
      `for each of the ${layers} layers the expert of every router row, or null`,
    );
  }
  return value as (readonly number[] | null)[];
}

/** What expert pruning leaves of a layer; undefined for one without experts. */
export type LayerExperts = Omit<LayerRouting, 'topK'> | undefined;

export interface StatedExperts {
  /** The fields of config.json to set. */
  readonly fields: ReadonlyMap<string, unknown>;
  /** Sentences about what the change means. */
  readonly warnings: readonly string[];
}

/**
 * The fields of config.json that say what experts each layer has now: a number where all layers have as many, else a list;
 * `expert_of_row` where rows share experts; a lower `num_experts_per_tok` where no layer has as many router rows.
 *
 * @param config The source's config.json.
 */
export function stateExperts(
  config: Readonly<Record<string, unknown>>,
  layers: readonly LayerExperts[],
): StatedExperts {
  const routed = layers.filter((layer) => layer !== undefined);
  const fields = new Map<string, unknown>();
  const warnings: string[] = [];
  const counts = new Set(routed.map(({ experts }) => experts));
  const isUniform = counts.size === 1;
  const stated = isUniform ? [...counts][0] : layers.map((layer) => layer?.experts ?? 0);
  const names = (['num_experts', 'num_local_experts'] as const).filter((name) => config[name] !== undefined);
  for (const name of names) fields.set(name, stated);

  const isMapped = routed.some(({ expertOfRow }) => expertOfRow !== undefined);
  if (isMapped)
    fields.set(
      mapField,
      layers.map((layer) => layer?.expertOfRow ?? null),
    );
  if (isMapped) {
    warnings.push(
      'experts were merged and router rows share them, which config.json says in expert_of_row: only Espalier loads this ' +
        'checkpoint; other runtimes refuse it. Save merges as "repeat" or "average" for them',
    );
  } else if (!isUniform) {
    warnings.push(
      `layers keep different numbers of experts, so ${names.join(' and ')} in config.json is a list: only Espalier loads ` +
        'this checkpoint; other runtimes refuse it. A uniform number for each layer loads everywhere',
    );
  }

  const topK = config[topKField];
  const rows = routed.map(({ experts, expertOfRow }) => expertOfRow?.length ?? experts);
  const [least, most] = [Math.min(...rows), Math.max(...rows)];
  if (typeof topK === 'number' && topK > least) {
    // Where layers differ, each takes all it has: the number stays that of the others.
    if (topK > most) fields.set(topKField, most);
    warnings.push(
      `each token went to ${topK} experts, but ${isUniform ? 'only' : 'a layer keeps only'} ${least} are left: ` +
        `${isUniform ? 'it now goes' : 'there it now goes'} to ${least}`,
    );
  }
  return { fields, warnings };
}
