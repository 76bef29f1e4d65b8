/** Runs one command: signals, errors, exit statuses. */
import type { Command, CommanderError } from 'commander';
import { EspalierError, isEspalierError } from '../errors.ts';
import type { Context, Work } from './context.ts';
import { Interrupts } from './interrupts.ts';
import { flagOf, type GlobalOptions } from './options.ts';
import { quoteCommand } from './quote.ts';
import { Terminal } from './terminal.ts';

/** Does a command's work and returns the exit status; every error ends here. */
export async function runCommand<Options>(
  command: Command,
  argv: readonly string[],
  work: Work<Options>,
): Promise<number> {
  const options = command.opts<Options & GlobalOptions>();
  const terminal = new Terminal({ json: options.json === true, quiet: options.quiet === true });
  process.on('uncaughtException', (error) => process.exit(report(terminal, error)));
  using interrupts = new Interrupts(terminal);
  let resume: { kept: string; argv: readonly string[] } | undefined;
  const context: Context<Options> = {
    args: command.args,
    options,
    terminal,
    signal: interrupts.signal,
    resumeWith: (kept, again) => {
      resume = { kept, argv: again };
    },
    argv,
  };
  try {
    return (await work(context)) ?? 0;
  } catch (error) {
    terminal.endProgress();
    if (isEspalierError(error) && error.code === 'ABORTED') {
      terminal.failure(error);
      terminal.error(
        resume === undefined
          ? 'interrupted'
          : `interrupted; ${resume.kept}. Go on with:\n  ${quoteCommand(resume.argv)}`,
      );
      return error.exitCode;
    }
    return report(terminal, nameFlag(command, error));
  } finally {
    terminal.endProgress();
  }
}

/** A command line that commander refuses. */
export function reportUsage(error: CommanderError, argv: readonly string[], commands: readonly string[]): number {
  const terminal = new Terminal({ json: argv.includes('--json') });
  const text = error.message.replace(/^error: /, '').replaceAll('\n', ' ');
  const field = /'(--[a-z-]+)/.exec(text)?.[1];
  const allowed = `commands: ${commands.join(', ')}`;
  const message =
    error.code === 'commander.help'
      ? `no command was given; ${allowed}`
      : error.code === 'commander.unknownCommand'
        ? `${text}; ${allowed}`
        : text;
  return report(terminal, new EspalierError('USAGE', message, field === undefined ? {} : { field }));
}

function report(terminal: Terminal, error: unknown): number {
  const known = isEspalierError(error) ? error : asInternal(error);
  terminal.failure(known);
  if (known.code === 'INTERNAL') {
    const { stack } = (known.cause ?? known) as Error;
    terminal.error(`this is a bug in espalier, not in your input: ${known.message}\n${stack ?? ''}`);
  } else {
    terminal.error(`${known.message} [${known.code}]`);
  }
  return known.exitCode;
}

function asInternal(cause: unknown): EspalierError {
  return new EspalierError('INTERNAL', cause instanceof Error ? cause.message : String(cause), {
    cause: cause instanceof Error ? cause : new Error(String(cause)),
  });
}

/** Errors of the library name its options; people on the command line know flags. */
function nameFlag(command: Command, error: unknown): unknown {
  if (!isEspalierError(error) || error.code !== 'USAGE' || error.field === undefined) return error;
  const flag = flagOf(error.field);
  const isFlag = command.options.some(({ long }) => long === flag);
  if (!isFlag || error.message.includes(flag)) return error;
  const { file, tensor } = error;
  return new EspalierError('USAGE', `${flag}: ${error.message}`, {
    field: flag,
    cause: error,
    ...(file === undefined ? {} : { file }),
    ...(tensor === undefined ? {} : { tensor }),
  });
}
