/**
 * The locks of an app, as a fold of the log.
 *
 * A lock is there while it has an owner; those who wait stand in the order of their
 * requests. All instances fold the same records in the same order, so all know
 * the same owner, and each tells its own callers. What happens by itself, a lease
 * that ends or an instance that dies, is a record too, written by whoever noticed:
 *
 * - `expire` names the last touch (grant or renewal) that its author counted the ttl
 *   from. If the owner was touched since, in the order of the log, it does nothing; a
 *   renewal that comes after it is refused. Whoever writes it has waited ttl and slack
 *   since *it* read that touch, which is later than the moment the owner counts from.
 * - `gone` names the last record that was read of an instance. If there is a later one
 *   it does nothing; otherwise nobody of that instance waits any more. Its leases end with their ttl.
 *
 * **Retention.** The log forgets its beginning, and a grant may be older than what is left
 * of it. Renewals do not tell enough to go by (one that was refused looks the same), so
 * instances write a `snapshot` of all locks from time to time, several within the
 * retention. Who starts, or was away for longer than the log reaches back, knows
 * nothing and grants nothing until the first of these:
 *
 * - the log is there from its first record on;
 * - a snapshot that leaves no hole to what was read: it is as of an offset, and what came
 *   between that and the snapshot itself is applied to it;
 * - a `genesis`, by which *everybody* forgets all locks. It is written when a
 *   snapshot was asked for and nobody had one, after a time in which the lease
 *   of someone who could not answer has ended, and does nothing if one came after all.
 *
 * So whoever knows anything knows the same as everybody else, at the same offset.
 *
 * No clock is read here: times come in by argument, and are kept only for those who
 * decide what to write. They are not part of what is equal on all instances.
 */
import type { LockRecord, LockSnapshot, LogRecord } from "./LogRecord.ts"

/** Milliseconds, all of them. */
interface Owner {
  readonly id: string
  readonly fence: number
  ttl: number
  /** The offset of the grant or of the last renewal. */
  touched: number
  /** When that was read here. */
  touchedAt: number
}

export interface Lock {
  owner: Owner
  /** Ttls by request, first come first. */
  readonly waiters: Map<string, number>
}

/** A record where it stands in the log, and when it was read. */
export interface Position {
  readonly offset: number
  /** What a grant by this record is worth: increases with the offset, and over all logs there were. */
  readonly fence: number
  readonly author: string
  readonly now: number
}

export interface Outcome {
  /** Of a `request`: its author has the lock; of a `renew`: the lease was live. */
  readonly accepted: boolean
  /** Who has the lock since this record, if that has changed. */
  readonly granted?: { readonly key: string; readonly id: string; readonly fence: number } | undefined
}

const accepted: Outcome = { accepted: true }
const refused: Outcome = { accepted: false }

const changing: ReadonlySet<LogRecord["kind"]> = new Set(["request", "renew", "release", "expire", "gone", "bye"])
const nothing: LogRecord = { kind: "ask" }

/** How many records are kept for a snapshot to come. */
const bufferSize = 100_000

export class LockFold {
  readonly locks = new Map<string, Lock>()
  /** The last record of every instance that has not said goodbye, and when it was read here. */
  readonly seen = new Map<string, { offset: number; at: number }>()
  /** Whether the state is that of everybody else. */
  known = false
  private offset = -1
  /** Of the last snapshot or genesis. */
  private restated = -1
  /** While nothing is known: from where on the buffer has every record. */
  private first = 0
  private buffer: Array<{ readonly position: Position; readonly record: LogRecord }> = []

  /** Forgets everything: the log is read from `first`, its first record there is. */
  begin(first: number): void {
    this.clear()
    this.known = first === 0
    this.first = first
    this.offset = first - 1
    this.restated = -1
  }

  apply(position: Position, record: LogRecord): Outcome {
    this.offset = position.offset
    if (record.kind === "snapshot") {
      this.restated = position.offset
      if (!this.known && record.asOf >= this.first - 1) this.adopt(record, position.now)
    } else if (
      record.kind === "genesis" &&
      this.restated < record.asked &&
      (this.known || this.first <= record.asked)
    ) {
      this.restated = position.offset
      this.clear()
      this.known = true
    }
    if (this.known) return this.step(position, record)
    const { author, fence, now, offset } = position
    // Of what does not change locks only that its author lives: payloads of caches take memory.
    this.buffer.push({ position: { author, fence, now, offset }, record: changing.has(record.kind) ? record : nothing })
    if (this.buffer.length > bufferSize) {
      this.buffer.splice(0, bufferSize / 2)
      this.first = this.buffer[0]!.position.offset
    }
    return refused
  }

  /** All there is, as of the last record read. */
  snapshot(): LockRecord {
    return {
      kind: "snapshot",
      asOf: this.offset,
      locks: Array.from(
        this.locks,
        ([key, { owner, waiters }]): LockSnapshot => [
          key,
          owner.id,
          owner.fence,
          owner.ttl,
          owner.touched,
          [...waiters]
        ]
      ),
      seen: Array.from(this.seen, ([author, { offset }]) => [author, offset] as const)
    }
  }

  private clear(): void {
    this.locks.clear()
    this.seen.clear()
    this.buffer = []
  }

  private adopt(snapshot: LockRecord & { readonly kind: "snapshot" }, now: number): void {
    for (const [key, id, fence, ttl, touched, waiters] of snapshot.locks) {
      this.locks.set(key, { owner: { id, fence, ttl, touched, touchedAt: now }, waiters: new Map(waiters) })
    }
    for (const [author, offset] of snapshot.seen) this.seen.set(author, { offset, at: now })
    this.known = true
    const buffer = this.buffer
    this.buffer = []
    for (const { position, record } of buffer) {
      if (position.offset > snapshot.asOf) this.step(position, record)
    }
  }

  private step(position: Position, record: LogRecord): Outcome {
    const outcome = this.change(position, record)
    if (record.kind === "bye") return outcome
    const seen = this.seen.get(position.author)
    if (seen === undefined) this.seen.set(position.author, { offset: position.offset, at: position.now })
    else {
      seen.offset = position.offset
      seen.at = position.now
    }
    return outcome
  }

  private change(position: Position, record: LogRecord): Outcome {
    switch (record.kind) {
      case "request":
        return this.request(position, record)
      case "renew": {
        const owner = this.locks.get(record.key)?.owner
        if (owner?.id !== record.id) return refused
        owner.ttl = record.ttl
        owner.touched = position.offset
        owner.touchedAt = position.now
        return accepted
      }
      case "release": {
        const lock = this.locks.get(record.key)
        if (lock?.owner.id === record.id) return this.pass(position, record.key, lock)
        lock?.waiters.delete(record.id)
        return accepted
      }
      case "expire": {
        const lock = this.locks.get(record.key)
        return lock?.owner.touched === record.touched ? this.pass(position, record.key, lock) : refused
      }
      case "gone":
        if (this.seen.get(record.author)?.offset !== record.seen) return refused
        this.forget(record.author)
        return accepted
      case "bye":
        this.forget(position.author)
        return accepted
      default:
        return accepted
    }
  }

  private request(position: Position, record: LockRecord & { readonly kind: "request" }): Outcome {
    const { key, id, over, ttl, wait } = record
    let lock = this.locks.get(key)
    let granted: Outcome["granted"]
    if (lock !== undefined && lock.owner.touched === over) {
      granted = this.pass(position, key, lock).granted
      lock = this.locks.get(key)
    }
    if (lock === undefined) return this.grant(position, key, id, ttl, new Map())
    if (lock.owner.id === id) return accepted
    if (wait) lock.waiters.set(id, ttl)
    return { accepted: false, granted }
  }

  /** Gives the lock to the first who waits, or forgets it. */
  private pass(position: Position, key: string, { waiters }: Lock): Outcome {
    const next = waiters.entries().next()
    if (next.done) {
      this.locks.delete(key)
      return accepted
    }
    const [id, ttl] = next.value
    waiters.delete(id)
    return this.grant(position, key, id, ttl, waiters)
  }

  private grant(
    { fence, now, offset }: Position,
    key: string,
    id: string,
    ttl: number,
    waiters: Map<string, number>
  ): Outcome {
    this.locks.set(key, { owner: { id, fence, ttl, touched: offset, touchedAt: now }, waiters })
    return { accepted: true, granted: { key, id, fence } }
  }

  private forget(author: string): void {
    this.seen.delete(author)
    for (const { waiters } of this.locks.values()) {
      for (const id of waiters.keys()) if (authorOf(id) === author) waiters.delete(id)
    }
  }
}

/** Who wrote a request. */
export const authorOf = (id: string): string => id.slice(0, id.indexOf("."))

/** The id of the instance that made a request. */
export const instanceOf = (id: string): string => id.slice(id.indexOf(".", id.indexOf(".") + 1) + 1)
