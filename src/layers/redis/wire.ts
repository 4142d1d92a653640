/** What the stores write to Redis has in common. */

/** A time for Redis: whole milliseconds, at least one, and no more than it can count to. */
export const millis = (value: number): number => Math.min(Math.max(Math.ceil(value), 1), 2 ** 52)

/**
 * Text that survives UTF-8. Halves of surrogate pairs, which UTF-8 would make all
 * the same, are escaped; so is what would look like it.
 */
export const encodeKey = (key: string): string => (plain(key) ? key : `\u0001${escapeHalves(key)}`)

export const decodeKey = (text: string): string =>
  text.charCodeAt(0) === 1
    ? text.slice(1).replace(/%([0-9a-f]{4})/g, (_, code: string) => String.fromCharCode(Number.parseInt(code, 16)))
    : text

const plain = (key: string): boolean => key.charCodeAt(0) !== 1 && key.isWellFormed()

const escapeHalves = (key: string): string =>
  key.replace(
    /%|[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g,
    (char) => `%${char.charCodeAt(0).toString(16).padStart(4, "0")}`
  )

/** Text as a pattern that matches it and nothing else. */
export const escapeGlob = (text: string): string => text.replace(/[\\*?[\]]/g, "\\$&")
