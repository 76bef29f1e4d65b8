/**
 * A lock file that names its owner: host, boot, process-id namespace, process id and that process's start time, so that a
 * lock left by a crash is told from one that is held, also when the process id has been given to another process.
 */
import { randomBytes } from 'node:crypto';
import { linkSync, readFileSync, readlinkSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { EspalierError, fromSystemError } from '../errors.ts';

interface Owner {
  host: string;
  boot: string;
  namespace: string;
  pid: number;
  started: string;
  token: string;
}

export class LockFile {
  readonly path: string;
  readonly #token: string;

  private constructor(path: string, token: string) {
    this.path = path;
    this.#token = token;
  }

  /** Takes the lock, recovering one whose owner is dead. Throws `LOCKED` when another run holds it. */
  static acquire(path: string): LockFile {
    const owner = thisProcess();
    const mine = `${path}.tmp-${process.pid}-${owner.token}`;
    try {
      // A link appears with its content in place, so nobody ever reads a half-written lock.
      writeFileSync(mine, JSON.stringify(owner), { flag: 'wx' });
      for (let attempt = 0; attempt < 10; attempt++) {
        if (tryLink(mine, path)) return new LockFile(path, owner.token);
        const held = readOwner(path);
        if (held === 'missing') continue;
        const state = stateOf(held, owner);
        if (state !== 'stale') throw lockedError(path, held, state);
        setAside(path, owner);
      }
      throw lockedError(path, readOwner(path), 'held');
    } catch (error) {
      // The folder is there: a system that finds no such file makes none, as in /proc.
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
        throw new EspalierError('IO', `cannot lock ${path}: the system makes no files there`, {
          file: path,
          cause: error,
        });
      }
      throw fromSystemError(error, 'lock', path);
    } finally {
      rmSync(mine, { force: true });
    }
  }

  /** Throws `LOCKED` when another run holds the lock, without taking it. */
  static requireFree(path: string): void {
    const held = readOwner(path);
    if (held === 'missing') return;
    const state = stateOf(held, thisProcess());
    if (state !== 'stale') throw lockedError(path, held, state);
  }

  /** Whether the lock is still ours; false once somebody removed or replaced the file. */
  get isHeld(): boolean {
    const held = readOwner(this.path);
    return typeof held === 'object' && held.token === this.#token;
  }

  /** Gives the lock back; harmless when it is no longer ours. */
  release(): void {
    if (this.isHeld) rmSync(this.path, { force: true });
  }
}

function thisProcess(): Owner {
  return {
    host: hostname(),
    boot: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(),
    namespace: readlinkSync('/proc/self/ns/pid'),
    pid: process.pid,
    started: startTime(process.pid) ?? '',
    token: randomBytes(8).toString('hex'),
  };
}

/** Start time of a process in clock ticks since boot, undefined when there is no such process (or only its zombie). */
function startTime(pid: number): string | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return undefined;
  }
  // The command name stands in parentheses and may hold spaces; state is the first field after it, start time the 20th.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
}

type Held = Owner | 'missing' | 'unreadable';

function readOwner(path: string): Held {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'missing';
    throw error;
  }
  try {
    const owner = JSON.parse(text) as Partial<Owner> | null;
    return owner !== null && Number.isSafeInteger(owner.pid) && typeof owner.token === 'string'
      ? (owner as Owner)
      : 'unreadable';
  } catch {
    return 'unreadable';
  }
}

function stateOf(held: Held, self: Owner): 'held' | 'stale' | 'unknown' {
  if (typeof held === 'string' || held.host !== self.host) return 'unknown';
  if (held.boot !== self.boot) return 'stale';
  if (held.namespace !== self.namespace) return 'unknown';
  return startTime(held.pid) === held.started ? 'held' : 'stale';
}

function tryLink(existing: string, path: string): boolean {
  try {
    linkSync(existing, path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
}

/** Removes a stale lock. Two runs may do so at once, and what one moves away may be the other's new lock: put that back. */
function setAside(path: string, self: Owner): void {
  const aside = `${path}.tmp-${process.pid}-${randomBytes(6).toString('hex')}`;
  try {
    renameSync(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  if (stateOf(readOwner(aside), self) !== 'stale') tryLink(aside, path);
  rmSync(aside, { force: true });
}

function lockedError(path: string, held: Held, state: 'held' | 'unknown'): EspalierError {
  const who = typeof held === 'string' ? 'an unknown process' : `process ${held.pid} on ${held.host}`;
  return new EspalierError(
    'LOCKED',
    state === 'held'
      ? `another run (${who}) is writing to the same output. Wait for it to end, or choose another output.`
      : `${path} says that ${who} is writing to the same output, and from here it cannot be seen whether that run still lives. If it does not, delete the file.`,
    { file: path },
  );
}
