/**
 * The ids that queues know, as a fold of the log.
 *
 * A claim is _pending_ while its job is being published, _living_ while that lives, and
 * _ended_ for as long as its id is kept after that. Each ends by itself at `until`: whatever dies
 * in between leaves an id that is known for too long, but not for ever. Times are those of the records'
 * authors, so every instance decides alike.
 *
 * **An end is final.** A job may have run before its publisher hears that it is stored, so that it is told to live
 * after it has ended.
 *
 * **Claims outlive the log's retention**: what has not been heard of for a good part of it is repeated
 * (`repeat`), and instances that began to read later take it from there. They leave out what
 * ended since its author read that far.
 *
 * No clock is read here: moments come in by argument.
 */
import type { ClaimState, KeptClaim, QueueRecord } from "./LogRecord.ts"

/** A claim is made, or the one that is there is told, whose `token` may be of a claim that is pending. */
export type Verdict = { readonly state: ClaimState; readonly token: string } | "granted"

interface Claim extends KeptClaim {
  /** When the log told of it last: bytes since the fold began, and Unix time. */
  readonly bytes: number
  readonly at: number
  /** Whether only its owner told of it, who may have lost it before this instance began to read. */
  readonly weak: boolean
}

/** How many ends are remembered, against repetitions that do not know of them. */
const rememberedEnds = 10_000
/** Claims that are over are kept for as long as clocks may differ, in milliseconds. */
const skew = 60_000
/** Of a claim in a record, beside its names, in bytes. A rough figure. */
const claimOverhead = 30

const addressOf = (channel: string, id: string): string => `${channel.length}:${channel}${id}`

export class ClaimFold {
  private readonly rememberedEnds: number
  /** Told of last comes last. */
  private readonly claims = new Map<string, Claim>()
  /** Tokens of claims that were dropped, with the offset at which. */
  private readonly ends = new Map<string, number>()
  /** Until when a consumer of a channel was last being cancelled. */
  private readonly pauses = new Map<string, number>()
  /** Ends before it may be forgotten. */
  private floor = 0
  private bytes = 0

  constructor(remembered = rememberedEnds) {
    this.rememberedEnds = remembered
  }

  /** Forgets everything: the log is read from its first record there is. */
  begin(first: number): void {
    this.claims.clear()
    this.ends.clear()
    this.pauses.clear()
    this.floor = first
    this.bytes = 0
  }

  get size(): number {
    return this.claims.size
  }

  get(channel: string, id: string): Claim | undefined {
    return this.claims.get(addressOf(channel, id))
  }

  /** Whether a claim has ended, as far as that is remembered. */
  isOver(token: string): boolean {
    return this.ends.has(token)
  }

  /** Until when a consumer was last being cancelled, in Unix milliseconds. */
  pausedUntil(channel: string): number {
    return this.pauses.get(channel) ?? Number.NEGATIVE_INFINITY
  }

  /** Counts what else the log retains. */
  pass(size: number): void {
    this.bytes += size
  }

  /** The answer to a claim. */
  apply(offset: number, record: QueueRecord): Verdict | undefined {
    switch (record.kind) {
      case "claim": {
        const { at, channel, dead, id, token, until } = record
        const current = this.get(channel, id)
        if (current !== undefined && current.until > at && !(dead && current.state === "ended")) {
          return { state: current.state, token: current.token }
        }
        this.put({ channel, id, token, state: "pending", until }, at, false)
        return "granted"
      }
      case "keep": {
        const { at, channel, id, state, token, until } = record
        const current = this.get(channel, id)
        if (state === "ended") this.remember(token, offset)
        // Its publisher learns late that it was stored, or it is a copy: what has ended does not live again.
        else if (this.isOver(token) || (current?.token === token && current.state === "ended")) return undefined
        // Someone else's by now.
        if (current !== undefined && current.token !== token && current.until > at) return undefined
        const weak = current?.token === token ? current.weak : true
        if (until > at) this.put({ channel, id, token, state, until }, at, weak)
        else this.claims.delete(addressOf(channel, id))
        return undefined
      }
      case "pause":
        this.pauses.set(record.channel, Math.max(record.until, this.pausedUntil(record.channel)))
        return undefined
      case "kept":
        for (const kept of record.claims) {
          const current = this.get(kept.channel, kept.id)
          if (current?.token === kept.token) {
            this.put(current.state !== "ended" && kept.state === "ended" ? kept : current, record.at, false)
          } else if (
            (current === undefined || (current.weak && kept.until > record.at)) &&
            record.asOf >= this.floor &&
            (this.ends.get(kept.token) ?? -1) <= record.asOf
          ) {
            this.put(kept, record.at, false)
          }
        }
        return undefined
    }
  }

  /** Claims that the log may forget soon: not told of within so many bytes, and so much time. Up to so many bytes of them. */
  repeat(
    limits: { readonly bytes: number; readonly millis: number },
    wall: number,
    most = Number.POSITIVE_INFINITY
  ): ReadonlyArray<KeptClaim> {
    const found: Array<KeptClaim> = []
    let left = most
    for (const [address, claim] of this.claims) {
      if (claim.until + skew < wall) this.claims.delete(address)
      else if (this.bytes - claim.bytes < limits.bytes && wall - claim.at < limits.millis) break
      else if (claim.until > wall) {
        const { channel, id, state, token, until } = claim
        left -= channel.length + id.length + token.length + claimOverhead
        if (left < 0) break
        found.push({ channel, id, token, state, until })
      }
    }
    return found
  }

  /** Drops what is over. */
  sweep(wall: number): void {
    for (const [address, { until }] of this.claims) if (until + skew < wall) this.claims.delete(address)
  }

  private put({ channel, id, state, token, until }: KeptClaim, at: number, weak: boolean): void {
    const address = addressOf(channel, id)
    this.claims.delete(address)
    this.claims.set(address, { channel, id, token, state, until, bytes: this.bytes, at, weak })
  }

  private remember(token: string, offset: number): void {
    this.ends.delete(token)
    this.ends.set(token, offset)
    if (this.ends.size <= this.rememberedEnds) return
    const [oldest, at] = this.ends.entries().next().value!
    this.ends.delete(oldest)
    this.floor = at
  }
}
