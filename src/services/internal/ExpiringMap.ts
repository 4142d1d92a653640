/**
 * A map whose entries expire. Expired entries are as good as none; every write
 * looks at two more entries in turn and drops those that have expired, so what is
 * kept stays within a small factor of what is live, without a timer.
 */
export class ExpiringMap<A> {
  private readonly entries = new Map<string, Expiring<A>>()
  private readonly now: () => number
  private cursor: Iterator<[string, Expiring<A>]> | undefined

  constructor(now: () => number) {
    this.now = now
  }

  get(key: string): A | undefined {
    return this.entry(key)?.value
  }

  /** The live entry; `expiresAt` is `Infinity` without a ttl. */
  entry(key: string): Expiring<A> | undefined {
    const entry = this.entries.get(key)
    if (entry === undefined) return undefined
    if (entry.expiresAt === Number.POSITIVE_INFINITY || entry.expiresAt > this.now()) return entry
    this.entries.delete(key)
    return undefined
  }

  set(key: string, value: A, ttl: number | undefined): void {
    this.entries.set(key, { value, expiresAt: ttl === undefined ? Number.POSITIVE_INFINITY : this.now() + ttl })
    this.sweep()
    this.sweep()
  }

  delete(key: string): boolean {
    const live = this.entry(key) !== undefined
    this.entries.delete(key)
    return live
  }

  keys(): Array<string> {
    return [...this.entries.keys()].filter((key) => this.entry(key) !== undefined)
  }

  /** The live keys with the milliseconds each has left. */
  remaining(): Array<readonly [key: string, millis: number]> {
    return this.keys().map((key) => [key, this.entries.get(key)!.expiresAt - this.now()])
  }

  private sweep(): void {
    this.cursor ??= this.entries.entries()
    const next = this.cursor.next()
    if (next.done) this.cursor = undefined
    else if (next.value[1].expiresAt <= this.now()) this.entries.delete(next.value[0])
  }
}

export interface Expiring<A> {
  readonly value: A
  readonly expiresAt: number
}
