/** Numbers for people. */

/** `16.5 MB`; decimal units, as disks are sold. */
export function formatBytes(bytes: number): string {
  const [value, unit] = scaled(bytes, ['B', 'kB', 'MB', 'GB', 'TB', 'PB']);
  return unit === 'B' ? `${bytes} B` : `${value.toPrecision(3)} ${unit}`;
}

/** `14.2 M`, for weights and tokens; small counts as they are. */
export function formatCount(count: number): string {
  if (count < 10_000) return String(count);
  const [value, unit] = scaled(count, ['', 'K', 'M', 'B', 'T']);
  return `${value.toPrecision(3)} ${unit}`;
}

/** The value in the first unit in which three digits show it below 1000. */
function scaled(value: number, units: readonly string[]): [number, string] {
  let power = 0;
  for (; value >= 999.5 && power + 1 < units.length; power++) value /= 1000;
  return [value, units[power]!];
}

export function formatPercent(fraction: number, digits = 2): string {
  return `${(fraction * 100).toFixed(digits)} %`;
}

/** `8.4 s`, `3 min 5 s`, `2 h 10 min`. */
export function formatDuration(seconds: number): string {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
