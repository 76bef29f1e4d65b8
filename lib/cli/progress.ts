/** Progress on stderr: a bar on a terminal, a line every ten seconds elsewhere. */
import cliProgress from 'cli-progress';
import { formatDuration, formatPercent } from '../report/format.ts';

const interval = 10_000;

export class ProgressBar {
  readonly #bars = new cliProgress.MultiBar({
    format: '{bar} {percentage} %  {label}{left}',
    barsize: 24,
    barCompleteChar: '█',
    barIncompleteChar: '░',
    stream: process.stderr,
    clearOnComplete: true,
    // The command line has its own handling of Ctrl-C.
    gracefulExit: false,
    formatValue: (value, _options, type) => (type === 'percentage' ? String(value).padStart(3) : String(value)),
  });
  readonly #bar = this.#bars.create(1, 0, { label: '', left: '' });
  /** However the process ends, the terminal wraps lines again. */
  readonly #restore = () => this.#bars.stop();

  constructor() {
    process.once('exit', this.#restore);
  }

  update(fraction: number, label: string, secondsLeft?: number): void {
    const left = secondsLeft === undefined ? '' : `, ${formatDuration(secondsLeft)} left`;
    this.#bar.update(Math.min(1, fraction), { label, left });
  }

  log(line: string): void {
    this.#bars.log(`${line}\n`);
  }

  stop(): void {
    process.off('exit', this.#restore);
    // Lines that were logged since the last redraw would be lost.
    this.#bars.update();
    this.#bars.stop();
  }
}

export class ProgressLines {
  readonly #write: (line: string) => void;
  #last = performance.now();

  constructor(write: (line: string) => void) {
    this.#write = write;
  }

  update(fraction: number, label: string, secondsLeft?: number): void {
    const now = performance.now();
    if (now - this.#last < interval) return;
    this.#last = now;
    const left = secondsLeft === undefined ? '' : `, ${formatDuration(secondsLeft)} left`;
    this.#write(`${formatPercent(fraction, 0)} ${label}${left}`);
  }

  stop(): void {}
}
