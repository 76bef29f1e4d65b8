import type { Command } from 'commander';
import type { GlobalOptions } from './options.ts';
import type { Terminal } from './terminal.ts';

/** What a running command works with. */
export interface Context<Options> {
  /** Positional arguments, as many as the command declares. */
  readonly args: readonly string[];
  readonly options: Options & GlobalOptions;
  readonly terminal: Terminal;
  /** Fires at the first Ctrl-C or SIGTERM. */
  readonly signal: AbortSignal;
  /** Says what is kept, and prints the command line that goes on from there, if this run is interrupted. */
  resumeWith(kept: string, argv: readonly string[]): void;
  /** As it was given, without the interpreter and the program. */
  readonly argv: readonly string[];
}

/** What a command does; a number is its exit status where that is not 0. */
export type Work<Options> = (context: Context<Options>) => Promise<number | undefined>;

/** Connects a command's definition with what it does. */
export type Start = <Options>(command: Command, work: Work<Options>) => void;
