/**
 * Finds the tensors of a checkpoint that a family asks for, and checks each against the shape that config.json implies.
 * What does not fit is a `MISMATCH` that names the tensor and the layer.
 */
import { EspalierError } from '../errors.ts';
import type { MlpSpec, WeightSource } from './spec.ts';

/** The tensors of a checkpoint by name, whatever files they lie in and whether stored dense or sparse. */
export interface CheckpointTensors {
  has(name: string): boolean;
  get(name: string): { readonly shape: readonly number[]; readonly dtype: string } | undefined;
  names(): Iterable<string>;
}

const readable = ['BF16', 'F16', 'F32'];

/** How one expert's matrices are called below `experts.<number>.` */
const expertNames = [
  { gate: 'gate_proj', up: 'up_proj', down: 'down_proj' },
  { gate: 'w1', up: 'w3', down: 'w2' },
] as const;

export class Weights {
  readonly #tensors: CheckpointTensors;
  readonly #used = new Set<string>();
  /** `…experts` → numbers that stand below it. */
  readonly #expertNumbers = new Map<string, Set<number>>();
  #layers = 0;

  constructor(tensors: CheckpointTensors) {
    this.#tensors = tensors;
    for (const name of tensors.names()) {
      const layer = /^model\.layers\.(\d+)\./.exec(name);
      if (layer !== null) this.#layers = Math.max(this.#layers, Number(layer[1]) + 1);
      const expert = /^(.*\.experts)\.(\d+)\./.exec(name);
      if (expert === null) continue;
      const [, module = '', number = ''] = expert;
      const numbers = this.#expertNumbers.get(module) ?? new Set();
      this.#expertNumbers.set(module, numbers.add(Number(number)));
    }
  }

  /** One more than the highest layer number in the checkpoint. */
  get layers(): number {
    return this.#layers;
  }

  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  vector(tensor: string, length: number): WeightSource {
    return this.#checked(tensor, [length]);
  }

  /** Rows are output features. */
  matrix(tensor: string, rows: number, columns: number): WeightSource {
    return this.#checked(tensor, [rows, columns]);
  }

  /** A gated MLP under `gate_proj`, `up_proj`, `down_proj` of `module`. */
  mlp(module: string, hidden: number, width: number): MlpSpec {
    return this.#mlp(module, expertNames[0], hidden, width);
  }

  /** The router of `module`. */
  router(module: string, rows: number, hidden: number): WeightSource {
    const tensor = `${module}.gate.weight`;
    const found = this.#tensors.get(tensor)?.shape[0];
    if (found !== undefined && found !== rows) {
      throw mismatch(tensor, `has ${found} rows, but config.json gives the layer ${rows} experts`);
    }
    return this.matrix(tensor, rows, hidden);
  }

  /**
   * The experts of `module`, stored one by one (`experts.<n>.gate_proj.weight` or `experts.<n>.w1.weight`, …) or fused
   * (`experts.gate_up_proj` `[E, 2·width, hidden]`, gate rows first, and `experts.down_proj` `[E, hidden, width]`).
   */
  experts(module: string, experts: number, hidden: number, width: number): MlpSpec[] {
    const prefix = `${module}.experts`;
    if (this.has(`${prefix}.gate_up_proj`)) return this.#fusedExperts(prefix, experts, hidden, width);
    const numbers = this.#expertNumbers.get(prefix) ?? new Set<number>();
    // Counted before anything is built for them: the config may say any number.
    if (numbers.size !== experts || highest(numbers) >= experts) {
      throw mismatch(
        `${prefix}.*`,
        `holds ${numbers.size} experts (${gaps(numbers, experts)}), but config.json says ${experts}`,
      );
    }
    return Array.from({ length: experts }, (_, expert) => {
      const each = `${prefix}.${expert}`;
      const names = expertNames.find(({ gate }) => this.has(`${each}.${gate}.weight`)) ?? expertNames[0];
      return this.#mlp(each, names, hidden, width);
    });
  }

  /** Tensors that nothing asked for and that could have changed the result. */
  unused(): string[] {
    const unused: string[] = [];
    for (const name of this.#tensors.names()) {
      // Some exporters store the rotary tables; they follow from the config.
      if (!this.#used.has(name) && !name.endsWith('.rotary_emb.inv_freq')) unused.push(name);
    }
    return unused;
  }

  #mlp(module: string, names: (typeof expertNames)[number], hidden: number, width: number): MlpSpec {
    return {
      gate: this.matrix(`${module}.${names.gate}.weight`, width, hidden),
      up: this.matrix(`${module}.${names.up}.weight`, width, hidden),
      down: this.matrix(`${module}.${names.down}.weight`, hidden, width),
    };
  }

  #fusedExperts(prefix: string, experts: number, hidden: number, width: number): MlpSpec[] {
    const [inputs, outputs] = [`${prefix}.gate_up_proj`, `${prefix}.down_proj`];
    for (const tensor of [inputs, outputs]) {
      const held = this.#tensors.get(tensor)?.shape[0];
      if (held !== undefined && held !== experts) {
        throw mismatch(tensor, `holds ${held} experts, but config.json says ${experts}`);
      }
    }
    const inputShape = this.#checked(inputs, [experts, 2 * width, hidden]).shape;
    const outputShape = this.#checked(outputs, [experts, hidden, width]).shape;
    return Array.from({ length: experts }, (_, expert) => ({
      gate: { tensor: inputs, shape: [width, hidden], slice: { of: inputShape, expert, row: 0 } },
      up: { tensor: inputs, shape: [width, hidden], slice: { of: inputShape, expert, row: width } },
      down: { tensor: outputs, shape: [hidden, width], slice: { of: outputShape, expert, row: 0 } },
    }));
  }

  #checked(tensor: string, shape: readonly number[]): WeightSource {
    const found = this.#tensors.get(tensor);
    if (found === undefined) {
      throw mismatch(tensor, `is missing; config.json asks for it with shape ${list(shape)}`);
    }
    if (found.shape.length !== shape.length || found.shape.some((size, axis) => size !== shape[axis])) {
      throw mismatch(tensor, `has shape ${list(found.shape)}, but config.json implies ${list(shape)}`);
    }
    if (!readable.includes(found.dtype)) {
      throw mismatch(tensor, `has type ${found.dtype}, but a weight must be ${readable.join(', ')}`);
    }
    this.#used.add(tensor);
    return { tensor, shape };
  }
}

/** A `MISMATCH` about a tensor, led by the layer that its name gives. */
export function mismatch(tensor: string, problem: string): EspalierError {
  const layer = /^model\.layers\.(\d+)\./.exec(tensor)?.[1];
  const where = layer === undefined ? '' : `layer ${layer}: `;
  return new EspalierError('MISMATCH', `${where}${tensor} ${problem}.`, { tensor });
}

function list(shape: readonly number[]): string {
  return `[${shape.slice(0, 8).join(', ')}${shape.length > 8 ? ', …' : ''}]`;
}

/** Says which expert numbers are missing from 0 … experts − 1 or lie beyond. */
function gaps(numbers: ReadonlySet<number>, experts: number): string {
  for (let expert = 0; expert < experts; expert++) {
    if (!numbers.has(expert)) return `expert ${expert} is missing`;
  }
  return `up to expert ${highest(numbers)}`;
}

function highest(numbers: ReadonlySet<number>): number {
  let found = -1;
  for (const number of numbers) found = Math.max(found, number);
  return found;
}
