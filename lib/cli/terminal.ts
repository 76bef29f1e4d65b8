/** The two streams: results on stdout, everything else on stderr. */
import pc from 'picocolors';
import type { EspalierError } from '../errors.ts';
import { ProgressBar, ProgressLines } from './progress.ts';

type Colours = ReturnType<typeof pc.createColors>;

export class Terminal {
  readonly json: boolean;
  readonly quiet: boolean;
  /** Colours for stdout and stderr, plain where the stream is no terminal. */
  readonly out: Colours;
  readonly err: Colours;
  #progress: ProgressBar | ProgressLines | undefined;

  constructor({ json = false, quiet = false }: { json?: boolean; quiet?: boolean }) {
    this.json = json;
    this.quiet = quiet;
    this.out = coloursFor(process.stdout);
    this.err = coloursFor(process.stderr);
    watchStreams();
  }

  /** A result for people; the JSON document takes its place with --json. */
  print(text: string): void {
    if (!this.json) process.stdout.write(`${text}\n`);
  }

  /** The one document of --json. */
  document(value: unknown): void {
    if (this.json) process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
  }

  /** What is going on; not with --quiet. */
  note(text: string): void {
    if (!this.quiet) this.#line(text);
  }

  warn(text: string): void {
    this.#line(`${this.err.yellow('warning:')} ${text}`);
  }

  error(text: string): void {
    this.#line(`${this.err.red('error:')} ${text}`);
  }

  /** The document of --json for a failure. */
  failure({ code, message, file, tensor, field }: EspalierError): void {
    this.document({ error: { code, message, file: file ?? null, tensor: tensor ?? null, field: field ?? null } });
  }

  /** Moves the progress bar, or off a terminal writes a line now and then. `secondsLeft` where it is known. */
  progress(fraction: number, label: string, secondsLeft?: number): void {
    if (this.quiet) return;
    this.#progress ??= process.stderr.isTTY ? new ProgressBar() : new ProgressLines((line) => this.#line(line));
    this.#progress.update(fraction, label, secondsLeft);
  }

  /** A milestone: told in a line of its own where there is no bar that shows it. */
  milestone(text: string): void {
    if (!process.stderr.isTTY) this.note(text);
  }

  endProgress(): void {
    this.#progress?.stop();
    this.#progress = undefined;
  }

  #line(text: string): void {
    if (this.#progress instanceof ProgressBar) this.#progress.log(text);
    else process.stderr.write(`${text}\n`);
  }
}

function coloursFor(stream: NodeJS.WriteStream): Colours {
  const { NO_COLOR, FORCE_COLOR, TERM } = process.env;
  return pc.createColors(!NO_COLOR && (Boolean(FORCE_COLOR) || (stream.isTTY === true && TERM !== 'dumb')));
}

let watched = false;

/** A reader that has gone away (`| head`) ends the program quietly; a stdout that cannot be written to is status 3. */
function watchStreams(): void {
  if (watched) return;
  watched = true;
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0);
    process.stderr.write(`error: cannot write to stdout: ${error.message} [IO]\n`);
    process.exit(3);
  });
  process.stderr.on('error', () => {});
}
