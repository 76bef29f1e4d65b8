/** How much of the machine something else took while a contender was measured (Linux). */
import { readFileSync } from 'node:fs';

/** Milliseconds of work of all processors, with what the hypervisor took away. */
function busyMilliseconds() {
  const [user, nice, system, , , interrupts, softInterrupts, stolen] = readFileSync('/proc/stat', 'utf8')
    .split('\n', 1)[0]
    .split(/\s+/)
    .slice(1)
    .map(Number);
  return (user + nice + system + interrupts + softInterrupts + stolen) * 10;
}

/**
 * Starts counting.
 * @param {import('./contender.mjs').Contender} contender the one at work; the others, which wait, count as something else
 * @returns {() => number} processors that were busy with something else since, on average
 */
export function othersSince(contender) {
  const [busy, own, start] = [busyMilliseconds(), contender.cpuMilliseconds, performance.now()];
  return () => {
    const others = busyMilliseconds() - busy - (contender.cpuMilliseconds - own);
    return Math.max(0, others / (performance.now() - start));
  };
}
