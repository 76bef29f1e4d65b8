/** Bytes that stages take beside a layer and its activations; what the native side allocates, added up. */
import type { NativePlan } from '../../native.ts';
import type { Method } from '../methods.ts';

/** What the memory of a stage depends on; experts by the largest. */
export interface StageShape {
  readonly hidden: number;
  /** Inner size of an expert. */
  readonly width: number;
  /** Routed experts of the layer, and how many of them a token goes to. */
  readonly experts: number;
  readonly topK: number;
  /** Bytes of a weight in the checkpoint, and while the layer runs. */
  readonly storedBytes: number;
  readonly runningBytes: number;
  /** Calibration tokens, and those of them that the layer runs on together. */
  readonly tokens: number;
  readonly batch: number;
  /** Rows of the model's head in the last layer, else 0. */
  readonly vocabulary: number;
  readonly threads: number;
}

export interface StageMemory {
  /** For each expert whose statistics are in memory, of which there is at least one. */
  readonly each: number;
  /** Whatever their number. */
  readonly rest: number;
}

/** Columns that the kernels of the statistics take together, and tokens between two additions to a Gram matrix. */
const panel = 96;
const chunk = 256;

/** Tokens of an expert that are read back together (native/prune/layer_statistics.cc). */
const gathered = 1024;

const hugePage = 2 * 2 ** 20;

/** What an allocation takes: whole huge pages from one on (native/core/aligned.h). */
export function allocated(bytes: number): number {
  return bytes < hugePage ? bytes : Math.ceil(bytes / hugePage) * hugePage;
}

/** Half of the Gram matrix of `width` columns, and the tokens that are not added yet (native/prune/statistics.h). */
function gramBytes(width: number): number {
  const panels = Math.ceil(width / panel);
  const tiles = (panels * (panels + 1)) / 2;
  return allocated(tiles * panel * panel * 4) + allocated(panels * panel * chunk * 4) + 8 * width;
}

/** A matrix unpacked, and unpacked and stored: what is reported and written is. */
export function readBytes({ hidden, width, storedBytes }: StageShape): number {
  return hidden * width * (4 + storedBytes);
}

/** Runs `plan` with the statistics of a method over every expert matrix. */
export function planMemory(plan: NativePlan, statistics: Method['statistics'], shape: StageShape): StageMemory {
  const { hidden, width, experts, tokens, topK } = shape;
  const work = Math.max(matrixBytes(plan, width, hidden, shape), matrixBytes(plan, hidden, width, shape));
  if (statistics === 'none') return { each: 0, rest: work };
  const lengths = experts * 8 * (hidden + width);
  if (statistics === 'norms') return { each: 0, rest: work + lengths };
  const routes = tokens * topK * 12;
  const pooled = plan.shrinkage > 0 ? gramBytes(hidden) : 0;
  const inputs = Math.min(tokens, gathered) * (hidden + width) * 4;
  return { each: gramBytes(hidden) + gramBytes(width), rest: work + lengths + routes + pooled + inputs };
}

/** One matrix being pruned with what was made of its site. */
function matrixBytes(
  { update, values, comparison, block }: NativePlan,
  rows: number,
  cols: number,
  { runningBytes }: StageShape,
): number {
  const size = rows * cols;
  const walks = update === 'sparsegpt' || (update === 'alps' && values !== 'float');
  const given = update === 'alps' || comparison === 'given' ? size : 0;
  const site = (walks ? 8 * cols ** 2 : 0) + (update === 'alps' ? 4 * cols ** 2 : 0);
  const choosing = update === 'none' ? 5 * size : 0;
  const walking = walks ? (2 * rows + cols) * block * 4 + given : 0;
  const solving = update === 'alps' ? 18 * size + 12 * cols ** 2 : 0;
  return 4 * size + site + Math.max(choosing, walking, solving, runningBytes * size);
}

/** A survey of a layer with the mean outputs of its experts, or with the losses of sets of them. */
export function surveyBytes(needs: { meanOutputs?: boolean; losses?: boolean }, shape: StageShape): number {
  const { hidden, width, experts, batch, tokens, topK } = shape;
  const means = needs.meanOutputs ? batch * (hidden + width) * 4 + experts * hidden * 8 : 0;
  const losses = needs.losses ? 128 * (experts * hidden * 4 + experts ** 2 * 8) + batch * width * 4 : 0;
  return means + losses + batch * experts * 12 + experts ** 2 * 16 + tokens * topK * 4;
}

/** Three experts as floats, and merged ones once more as they are stored and as they run. */
export function mergingBytes(align: boolean, left: number, shape: StageShape): number {
  const size = 3 * shape.hidden * shape.width;
  const matching = align ? 4 * shape.width ** 2 + 8 * shape.hidden * shape.width : 0;
  return 3 * 4 * size + matching + left * size * (shape.storedBytes + shape.runningBytes);
}

/** Experts that are trained together, and the batches and outputs that they are trained on (native/prune/recover.h). */
export function recoveryBytes(batch: number, logits: boolean, shape: StageShape): number {
  const { hidden, width, experts, tokens, topK, vocabulary, threads } = shape;
  const size = 3 * hidden * width;
  const together = Math.max(1, Math.min(experts, Math.floor(2 ** 27 / size)));
  const rows = Math.min(Math.max(batch, 4096), tokens);
  const each = Math.ceil((rows * topK) / experts);
  const passing =
    rows * 2 * hidden * 4 + together * (3 * allocated(each * hidden * 4) + 5 * allocated(each * width * 4));
  const head = logits ? vocabulary * (8 * hidden + threads * 2 * panel * 4) : 0;
  return together * size * 26 + passing + head + tokens * topK * 16;
}
