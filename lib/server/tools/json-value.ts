/** Finds where a JSON value ends, in a text that comes in pieces; what stands in it is not checked. */
export class JsonValue {
  #depth = 0;
  #isInText = false;
  #isEscaped = false;
  /** Whether its last character has come. */
  isOver = false;

  /**
   * Takes more of the value, which begins where the first call does.
   * @returns Where in `text` it goes on no longer.
   */
  take(text: string, from: number): number {
    for (let i = from; i < text.length; i++) {
      const character = text[i]!;
      if (this.#isInText) {
        if (this.#isEscaped) this.#isEscaped = false;
        else if (character === '\\') this.#isEscaped = true;
        else if (character === '"') this.#isInText = false;
        if (!this.#isInText && this.#depth === 0) return this.#end(i + 1);
        continue;
      }
      if (character === '"') this.#isInText = true;
      else if (character === '{' || character === '[') this.#depth++;
      else if (this.#depth === 0 && /[\s,}\]]/.test(character)) return this.#end(i);
      else if ((character === '}' || character === ']') && --this.#depth === 0) return this.#end(i + 1);
    }
    return text.length;
  }

  #end(at: number): number {
    this.isOver = true;
    return at;
  }
}
