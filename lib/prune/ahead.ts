/** The layers of a run one after the other, each loaded when it is asked for, or begun before. */

export interface Loading<Layer> {
  load(layer: number): Promise<Layer>;
  /** For what was loaded and is not asked for. */
  dispose(layer: Layer): void;
}

export class LayersInTurn<Layer> {
  readonly #loading: Loading<Layer>;
  #begun: { readonly layer: number; readonly loaded: Promise<Layer> } | undefined;

  constructor(loading: Loading<Layer>) {
    this.#loading = loading;
  }

  /** Begins to load the layer that is asked for next. What goes wrong is thrown then. */
  begin(layer: number): void {
    const loaded = this.#loading.load(layer);
    loaded.catch(() => {});
    this.#begun = { layer, loaded };
  }

  /** The layer belongs to the caller. */
  async take(layer: number): Promise<Layer> {
    const begun = this.#begun;
    if (begun?.layer !== layer) return await this.#loading.load(layer);
    this.#begun = undefined;
    return await begun.loaded;
  }

  /** Waits for a layer that was begun and not taken. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      const layer = await this.#begun?.loaded;
      if (layer !== undefined) this.#loading.dispose(layer);
    } catch {
      // Nobody asked for it.
    }
  }
}
