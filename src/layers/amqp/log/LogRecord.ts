/**
 * What the replicated log consists of, and how it is written.
 *
 * A record is one line of JSON, `[version, author, seq, kind, …fields]`, and after
 * it the texts of the payloads that the line tells the lengths of. `author` is one
 * start of one instance, `seq` its count of records. What a reader does not know
 * (a newer version, another kind) it leaves out.
 *
 * Times are milliseconds: `at` is the author's wall clock, a `ttl` of a cache entry
 * may be missing. Offsets are those of the log.
 */
import { Payload } from "../../../services/Payload.ts"

const version = 1

/** One entry of a cache to write. */
interface CacheEntry {
  readonly key: string
  readonly payload: Payload
}

export type CacheRecord =
  | {
      readonly kind: "set"
      readonly space: string
      readonly at: number
      readonly ttl: number | undefined
      readonly entries: ReadonlyArray<CacheEntry>
    }
  | { readonly kind: "del"; readonly space: string; readonly keys: ReadonlyArray<string> }
  | { readonly kind: "reset"; readonly space: string }
  | {
      readonly kind: "fill"
      readonly space: string
      readonly at: number
      readonly ttl: number | undefined
      readonly key: string
      readonly payload: Payload
      /** The offset that its author had read up to when the load began. */
      readonly since: number
      /** Whether it is there already, and written again before the log forgets it. */
      readonly again?: boolean | undefined
    }

/** A lock as a snapshot has it: key, owner with fence, ttl and the offset of its last touch, and who waits with which ttl. */
export type LockSnapshot = readonly [
  key: string,
  owner: string,
  fence: number,
  ttl: number,
  touched: number,
  waiters: ReadonlyArray<readonly [id: string, ttl: number]>
]

export type LockRecord =
  | {
      readonly kind: "request"
      readonly key: string
      /** `<author>.<number>.<instance>`: one request, and the grant it becomes. */
      readonly id: string
      readonly ttl: number
      readonly wait: boolean
      /** The last touch of an owner whose lease, as the author counted, has ended. */
      readonly over: number | undefined
    }
  | { readonly kind: "renew"; readonly key: string; readonly id: string; readonly ttl: number }
  /** Ends a request, whether it waits or was granted. */
  | { readonly kind: "release"; readonly key: string; readonly id: string }
  /** The lease of the owner, last touched at that offset, has ended as the author counted. */
  | { readonly kind: "expire"; readonly key: string; readonly touched: number }
  /** Nothing has been heard of an author since its record at offset `seen`. */
  | { readonly kind: "gone"; readonly author: string; readonly seen: number }
  /** The author stops; it waits for nothing any more. */
  | { readonly kind: "bye" }
  /** All locks, as they were after the record at `asOf`. */
  | {
      readonly kind: "snapshot"
      readonly asOf: number
      readonly locks: ReadonlyArray<LockSnapshot>
      readonly seen: ReadonlyArray<readonly [author: string, offset: number]>
    }
  /** The author found no snapshot to begin with, and asks for one. */
  | { readonly kind: "ask" }
  /** Nobody had one since the author asked, at offset `asked`: no lock is held. */
  | { readonly kind: "genesis"; readonly asked: number }

export type ClaimState = "pending" | "living" | "ended"

/** What a queue knows of an id. `token` is one claim's own; `until` is Unix time in milliseconds. */
export interface KeptClaim {
  readonly channel: string
  readonly id: string
  readonly token: string
  readonly state: ClaimState
  readonly until: number
}

export type QueueRecord =
  /** Wants an id; of a dead letter, with `dead`, for which the end of the job itself does not count. */
  | {
      readonly kind: "claim"
      readonly channel: string
      readonly id: string
      readonly token: string
      readonly at: number
      readonly until: number
      readonly dead: boolean
    }
  /** What has become of the claim; over if `until` is not after `at`. */
  | ({ readonly kind: "keep"; readonly at: number } & KeptClaim)
  /** A consumer of the channel is being cancelled: RabbitMQ counts what it was just given as delivered. */
  | { readonly kind: "pause"; readonly channel: string; readonly until: number }
  /** Claims that the log would forget, as they were after the record at `asOf`. */
  | { readonly kind: "kept"; readonly at: number; readonly asOf: number; readonly claims: ReadonlyArray<KeptClaim> }

/** Proves to its author that it has read up to here, and to the others that it lives; carries the epoch. */
interface Mark {
  readonly kind: "mark"
  readonly at: number
  /** See `ReplicatedLog`. */
  readonly epoch: number
}

export type LogRecord = CacheRecord | LockRecord | QueueRecord | Mark

/** A record and who wrote it. */
export interface Envelope {
  readonly author: string
  readonly seq: number
  readonly record: LogRecord
}

/** Whether a record tells nothing new: what was written before would be forgotten. */
export const isRepetition = (record: LogRecord): boolean =>
  record.kind === "kept" || (record.kind === "fill" && record.again === true)

export const encode = ({ author, seq, record }: Envelope): Buffer => {
  const line = (fields: ReadonlyArray<unknown>) => JSON.stringify([version, author, seq, record.kind, ...fields])
  return Buffer.from(textOf(record, line))
}

const textOf = (record: LogRecord, line: (fields: ReadonlyArray<unknown>) => string): string => {
  switch (record.kind) {
    case "set": {
      const entries = record.entries.map(({ key, payload }) => [key, payload.json.length])
      const head = line([record.space, record.at, record.ttl ?? null, entries])
      return `${head}\n${record.entries.map(({ payload }) => payload.json).join("")}`
    }
    case "fill": {
      const { again = false, space, at, ttl, key, since, payload } = record
      return `${line([space, at, ttl ?? null, key, since, payload.json.length, again])}\n${payload.json}`
    }
    case "del":
      return line([record.space, record.keys])
    case "reset":
      return line([record.space])
    case "request":
      return line([record.key, record.id, record.ttl, record.wait, record.over ?? null])
    case "renew":
      return line([record.key, record.id, record.ttl])
    case "release":
      return line([record.key, record.id])
    case "expire":
      return line([record.key, record.touched])
    case "gone":
      return line([record.author, record.seen])
    case "snapshot":
      return line([record.asOf, record.locks, record.seen])
    case "claim":
      return line([record.channel, record.id, record.token, record.at, record.until, record.dead])
    case "keep":
      return line([record.at, ...claimFields(record)])
    case "pause":
      return line([record.channel, record.until])
    case "kept":
      return line([record.at, record.asOf, record.claims.map(claimFields)])
    case "mark":
      return line([record.at, record.epoch])
    case "genesis":
      return line([record.asked])
    case "bye":
    case "ask":
      return line([])
  }
}

const claimFields = ({ channel, id, state, token, until }: KeptClaim): ReadonlyArray<unknown> => [
  channel,
  id,
  token,
  claimStates.indexOf(state),
  until
]

const claimStates: ReadonlyArray<ClaimState> = ["pending", "living", "ended"]

const readClaim = (read: Reader): KeptClaim => {
  const [channel, id, token] = [read.string(), read.string(), read.string()]
  const state = claimStates[read.number()]
  if (state === undefined) throw new Error("not a state")
  return { channel, id, token, state, until: read.number() }
}

/** `undefined` for what is no record of this version. */
export const decode = (body: Buffer): Envelope | undefined => {
  const text = body.toString("utf8")
  const end = text.indexOf("\n")
  try {
    const parsed: unknown = JSON.parse(end < 0 ? text : text.slice(0, end))
    if (!Array.isArray(parsed) || parsed[0] !== version) return undefined
    const [, author, seq, kind, ...fields] = parsed
    const read = new Reader(fields, end < 0 ? "" : text.slice(end + 1))
    return { author: string(author), seq: number(seq), record: recordOf(string(kind), read) }
  } catch {
    return undefined
  }
}

const recordOf = (kind: string, read: Reader): LogRecord => {
  switch (kind) {
    case "set": {
      const [space, at, ttl] = [read.string(), read.number(), read.optional()]
      const entries = read.list((entry) => ({ key: entry.string(), payload: read.payload(entry.number()) }))
      return { kind, space, at, ttl, entries }
    }
    case "fill": {
      const [space, at, ttl] = [read.string(), read.number(), read.optional()]
      const [key, since] = [read.string(), read.number()]
      return { kind, space, at, ttl, key, since, payload: read.payload(read.number()), again: read.next() === true }
    }
    case "del":
      return { kind, space: read.string(), keys: read.array().map(string) }
    case "reset":
      return { kind, space: read.string() }
    case "request": {
      const [key, id, ttl] = [read.string(), read.string(), read.number()]
      return { kind, key, id, ttl, wait: read.next() === true, over: read.optional() }
    }
    case "renew":
      return { kind, key: read.string(), id: read.string(), ttl: read.number() }
    case "release":
      return { kind, key: read.string(), id: read.string() }
    case "expire":
      return { kind, key: read.string(), touched: read.number() }
    case "gone":
      return { kind, author: read.string(), seen: read.number() }
    case "snapshot": {
      const asOf = read.number()
      const locks = read.list(
        (lock): LockSnapshot => [
          lock.string(),
          lock.string(),
          lock.number(),
          lock.number(),
          lock.number(),
          lock.list((waiter) => [waiter.string(), waiter.number()] as const)
        ]
      )
      return { kind, asOf, locks, seen: read.list((one) => [one.string(), one.number()] as const) }
    }
    case "claim": {
      const [channel, id, token] = [read.string(), read.string(), read.string()]
      return { kind, channel, id, token, at: read.number(), until: read.number(), dead: read.next() === true }
    }
    case "keep":
      return { kind, at: read.number(), ...readClaim(read) }
    case "pause":
      return { kind, channel: read.string(), until: read.number() }
    case "kept":
      return { kind, at: read.number(), asOf: read.number(), claims: read.list(readClaim) }
    case "mark":
      return { kind, at: read.number(), epoch: read.number() }
    case "genesis":
      return { kind, asked: read.number() }
    case "bye":
    case "ask":
      return { kind }
    default:
      throw new Error(`unknown kind of record: ${kind}`)
  }
}

const string = (value: unknown): string => {
  if (typeof value !== "string") throw new Error("not a string")
  return value
}

const number = (value: unknown): number => {
  if (typeof value !== "number") throw new Error("not a number")
  return value
}

/** A part of a text holds on to all of it: this one does not. */
const copyOf = (part: string): string => ` ${part}`.slice(1)

/** Reads the fields of a line in turn; throws where they are not what they should be. */
class Reader {
  private place = 0
  private start = 0
  private readonly fields: ReadonlyArray<unknown>
  private readonly texts: string

  constructor(fields: ReadonlyArray<unknown>, texts = "") {
    this.fields = fields
    this.texts = texts
  }

  next(): unknown {
    return this.fields[this.place++]
  }

  string(): string {
    return string(this.next())
  }

  number(): number {
    return number(this.next())
  }

  optional(): number | undefined {
    const value = this.next()
    return value === null ? undefined : number(value)
  }

  array(): ReadonlyArray<unknown> {
    const value = this.next()
    if (!Array.isArray(value)) throw new Error("not a list")
    return value
  }

  list<A>(read: (item: Reader) => A): Array<A> {
    return this.array().map((item) => {
      if (!Array.isArray(item)) throw new Error("not a list")
      return read(new Reader(item))
    })
  }

  payload(length: number): Payload {
    const end = this.start + length
    if (!(length >= 0 && end <= this.texts.length)) throw new Error("cut short")
    const json = this.texts.slice(this.start, end)
    const isAll = length === this.texts.length
    this.start = end
    return Payload.fromJson(isAll ? json : copyOf(json))
  }
}
