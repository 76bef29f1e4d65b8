import { relative } from 'node:path';

/** A command line of this program that can be pasted into a POSIX shell. */
export function quoteCommand(argv: readonly string[]): string {
  const script = process.argv[1] ?? '';
  const near = relative('', script);
  const program = script.endsWith('.js') ? `node ${quote(near.length < script.length ? near : script)}` : 'espalier';
  return [program, ...argv.map(quote)].join(' ');
}

function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
