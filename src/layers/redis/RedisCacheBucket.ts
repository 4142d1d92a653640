/**
 * One bucket of a named cache: the keys of one hash slot, with a generation of
 * their own.
 *
 * What is asked for in one turn of the event loop goes out together: gets as one
 * MGET, sets and dels as one script, ttls as another. A read of a key that was
 * written before it in that turn goes out after the write.
 */
import * as Exit from "effect/Exit"
import { Payload } from "../../services/Payload.ts"
import type { Unavailable } from "../../services/Reason.ts"
import * as PerTurn from "./perTurn.ts"
import * as Scripts from "./RedisCacheScripts.ts"
import type { RedisConnection } from "./RedisConnection.ts"
import { encodeKey } from "./wire.ts"

export type Resume<A> = (result: Exit.Exit<A, Unavailable>) => void

interface Read<A> {
  readonly key: string
  readonly resume: Resume<A>
}

interface Change {
  readonly key: string
  /** Milliseconds or nothing; `remove` for what is to go. */
  readonly ttl: number | "" | typeof remove
  readonly payload: Payload | undefined
  /** Told whether there was a live entry, of what is removed. */
  readonly resume: Resume<boolean>
}

const remove = "d"

/**
 * How many keys one command names. Few enough that Redis begins on the first while
 * the rest of a crowd is still being collected: then neither waits for the other.
 */
const mostKeys = 32

export class Bucket {
  /** Redis' key of the generation; it is the hash tag, too. */
  readonly generation: string
  /** What the keys of the entries begin with. */
  readonly prefix: string
  private readonly reads: PerTurn.PerTurn<Read<Payload | undefined>>
  private readonly ttls: PerTurn.PerTurn<Read<number | undefined>>
  private readonly changes: PerTurn.PerTurn<Change>
  /** Redis' keys that are about to be written. */
  private changing = new Set<string>()

  constructor(redis: RedisConnection["Service"], unique: () => string, generation: string) {
    this.generation = generation
    this.prefix = `${generation}:`
    const send = () => void redis.flush()

    this.reads = PerTurn.make(
      (reads) => {
        redis.request<Array<string | null>>("mget", this.keysOf(reads), true, (result) => {
          if (result._tag === "Failure") return failAll(reads, result)
          const current = result.value[0]
          for (let i = 0; i < reads.length; i++) {
            reads[i]!.resume(Exit.succeed(payloadOf(current, result.value[i + 1])))
          }
        })
      },
      mostKeys,
      send
    )

    this.ttls = PerTurn.make(
      (reads) => {
        redis.requestRun<Array<number>>(Scripts.ttl, this.keysOf(reads), [], (result) => {
          if (result._tag === "Failure") return failAll(reads, result)
          for (let i = 0; i < reads.length; i++) {
            const left = result.value[i]!
            reads[i]!.resume(Exit.succeed(left === -2 ? undefined : left === -1 ? Number.POSITIVE_INFINITY : left))
          }
        })
      },
      mostKeys,
      send
    )

    this.changes = PerTurn.make(
      (changes) => {
        this.changing = new Set()
        const args: Array<string | number> = [unique(), unique()]
        for (const { payload, ttl } of changes) args.push(ttl, payload === undefined ? "" : payload.json)
        redis.requestRun<Array<number>>(Scripts.change, this.keysOf(changes), args, (result) => {
          if (result._tag === "Failure") return failAll(changes, result)
          let removed = 0
          for (const { resume, ttl } of changes) resume(ttl === remove && result.value[removed++] === 1 ? yes : no)
        })
      },
      mostKeys,
      send
    )
  }

  keyOf(key: string): string {
    return this.prefix + encodeKey(key)
  }

  get(key: string, resume: Resume<Payload | undefined>): void {
    this.reads.add(this.readOf(key, resume))
  }

  ttl(key: string, resume: Resume<number | undefined>): void {
    this.ttls.add(this.readOf(key, resume))
  }

  set(key: string, payload: Payload, ttl: number | "", resume: Resume<boolean>): void {
    this.changes.makeRoom(payload.json.length)
    this.change({ key: this.keyOf(key), payload, ttl, resume })
  }

  remove(key: string, resume: Resume<boolean>): void {
    this.change({ key: this.keyOf(key), payload: undefined, ttl: remove, resume })
  }

  /** Sends what is about to be written, before something else is sent directly. */
  flush(): void {
    this.changes.flush()
  }

  private change(change: Change): void {
    this.changing.add(change.key)
    this.changes.add(change)
  }

  private readOf<A>(name: string, resume: Resume<A>): Read<A> {
    const key = this.keyOf(name)
    if (this.changing.size > 0 && this.changing.has(key)) {
      // Those who asked before the write need not see it.
      this.reads.flush()
      this.changes.flush()
    }
    return { key, resume }
  }

  private keysOf(items: ReadonlyArray<{ readonly key: string }>): Array<string> {
    const keys = [this.generation]
    for (const { key } of items) keys.push(key)
    return keys
  }
}

const yes = Exit.succeed(true)
const no = Exit.succeed(false)

const failAll = (
  items: ReadonlyArray<{ readonly resume: Resume<never> }>,
  failure: Exit.Failure<unknown, Unavailable>
): void => {
  for (const { resume } of items) resume(failure as Exit.Failure<never, Unavailable>)
}

const headerLength = 2 * Scripts.markLength
const placeholder = Scripts.placeholderMark.charCodeAt(0)

/** The payload of an entry, if it is live. */
const payloadOf = (generation: string | null | undefined, text: string | null | undefined): Payload | undefined =>
  generation && text?.startsWith(generation) && text.charCodeAt(headerLength) !== placeholder
    ? Payload.fromJson(text.slice(headerLength))
    : undefined
