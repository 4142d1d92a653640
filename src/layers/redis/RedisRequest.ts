/**
 * Commands on their way to Redis: what is asked for, what is written for it, and
 * whether that has left this process.
 */
import type { Socket } from "node:net"
import type * as Exit from "effect/Exit"
import { Cluster, Command, type Redis } from "ioredis"
import * as Timers from "../../services/internal/Timers.ts"
import type { Unavailable } from "../../services/Reason.ts"
import type { Argument } from "./RedisConnection.ts"
import { isReadOnly } from "./RedisOptions.ts"

/** A command that somebody waits for: on its way, or for the connection. */
export class Request extends Timers.Timer {
  readonly command: string
  readonly args: ReadonlyArray<Argument>
  readonly retry: boolean
  readonly expire: (request: Request) => void
  readonly resume: (result: Exit.Exit<any, Unavailable>) => void
  /** Of a publish. */
  channel: string | undefined = undefined
  toSelf = false
  /** Of a Redis Cluster; otherwise it goes where its key is. */
  node: Redis | undefined = undefined
  number = 0
  deadline = 0
  /** Why it waits, if a server of a Redis Cluster has said so. */
  refusal: Error | undefined = undefined
  done = false

  constructor(
    command: string,
    args: ReadonlyArray<Argument>,
    retry: boolean,
    expire: (request: Request) => void,
    resume: (result: Exit.Exit<any, Unavailable>) => void
  ) {
    super()
    this.command = command
    this.args = args
    this.retry = retry
    this.expire = expire
    this.resume = resume
  }

  override run() {
    this.expire(this)
  }
}

/** What is written to one socket in one turn of the event loop. */
interface Turn {
  readonly stream: Socket
  /** Whether any of it may have left this process. */
  left: boolean
  /** How much of a write it is. */
  weight: number
  /** What is to be written, where the commands do not write by themselves. */
  text: string
}

/** One write for what is sent in one turn, up to a size: writing is most of what a command costs. */
export interface Turns {
  /** The one that a command of this weight for a socket belongs to. */
  readonly of: (stream: Socket, weight: number) => Turn
  /** What ioredis is to write a command to, instead of the socket: one text is cheaper to write than many. */
  readonly writer: Socket | undefined
  /** Hands what is written to the operating system, now instead of when the turn ends. */
  readonly end: () => void
}

/**
 * What is more goes out in another write, so that Redis begins while the rest is prepared: this many
 * commands, or scripts, that keep it busy for some eight times as long.
 */
const mostPerWrite = 64
/** How long a text is to which another command is added, in characters: V8 has none of more than 512 MB. */
const mostText = 4 * 1024 * 1024
const weightOf = (command: string): number => (command.startsWith("eval") ? 8 : 1)

/** The nodes of a Redis Cluster are not known beforehand: there the socket itself collects what it writes. */
export const makeTurns = (client: Redis | Cluster): Turns => {
  const collects = client instanceof Cluster
  // A map that is cleared again and again keeps what it held alive: each of its tables points to the next.
  let open: Array<Turn> = []
  let last: Turn | undefined
  const write = (turn: Turn) => {
    if (collects) turn.stream.uncork()
    else turn.stream.write(turn.text)
    // A connection whose end has not been read yet refuses the write; nothing of it is gone then.
    turn.left = !turn.stream.destroyed && turn.stream.errored === null
  }
  const end = () => {
    const turns = open
    open = []
    for (const turn of turns) write(turn)
  }
  return {
    of: (stream, weight) => {
      let turn = open.find((turn) => turn.stream === stream)
      if (turn === undefined || turn.weight >= mostPerWrite || turn.text.length >= mostText) {
        if (turn !== undefined) {
          write(turn)
          open = open.filter((other) => other !== turn)
        }
        if (open.length === 0) process.nextTick(end)
        turn = { stream, left: false, weight: 0, text: "" }
        open.push(turn)
        if (collects) stream.cork()
      }
      turn.weight += weight
      last = turn
      return turn
    },
    // As that of ioredis' pipelines, which asks a command what to write and then writes that.
    writer: collects
      ? undefined
      : ({
          isPipeline: true,
          destination: { redis: client },
          write: (text: string) => {
            last!.text += text
          }
        } as unknown as Socket),
    end
  }
}

const utf8 = { replyEncoding: "utf8" } as const

/** What becomes of a command. A reply is handled while it is read, an error later. */
export interface Answered {
  readonly onReply: (request: Request, reply: unknown) => void
  readonly onError: (request: Request, error: Error, sent: Sent) => void
}

/**
 * A command of ioredis that knows when it is written. It has no promise: that would cost a turn of its own, and
 * keep the command in memory until V8 collects all of it.
 */
export class Sent extends Command {
  readonly request: Request
  turn: Turn | undefined = undefined
  readonly turns: Turns

  constructor(request: Request, turns: Turns, { onError, onReply }: Answered) {
    super(request.command, [], utf8)
    this.args = [...request.args]
    this.stringifyArguments()
    this.request = request
    this.turns = turns
    const resolve = (reply: Buffer) => {
      this.isSettled = true
      this["_clearTimers"]()
      onReply(request, this.transformReply(reply))
    }
    // It may be refused while it is being sent.
    const reject = (error: Error) => {
      this.isSettled = true
      this["_clearTimers"]()
      queueMicrotask(() => onError(request, error, this))
    }
    // V8 makes a function old at once that is written as what a property becomes, and with it what it refers to.
    this.resolve = resolve
    this.reject = reject
  }

  override toWritable(stream: Socket) {
    this.turn = this.turns.of(stream, weightOf(this.name))
    return super.toWritable(stream)
  }

  /**
   * For a command that ioredis has begun to send to the nodes of a Redis Cluster: it goes on to where its keys are. What
   * has to wait first, or was given up, is not for ioredis to repeat: `fail` rejects it for good.
   */
  watch(fail: (error: Error) => void) {
    const { reject } = this
    this.reject = (error: Error) => {
      if (this.isSettled) return
      const refused = error.name === "ReplyError" ? refusal.exec(error.message)?.[1] : undefined
      if (refused !== undefined) this.turn = undefined
      if (refused === "MOVED" || refused === "ASK") reject(error)
      else fail(error)
    }
  }
}

// What ioredis makes in the constructor: the promise, which nobody awaits, and the arguments as text.
Object.defineProperty(Sent.prototype, "initPromise", { value: () => {} })

/** What a server of a Redis Cluster refuses a command with that it is not the one for, or not now. */
const refusal = /^(MOVED|ASK|TRYAGAIN|CLUSTERDOWN) /

/** Whether Redis has certainly not run a command that failed: it had not left, or was refused by a server that it is not for. */
export const hasNotRun = (sent: Sent, error: Error): boolean =>
  !sent.turn?.left || (error.name === "ReplyError" && isReadOnly(error))

/** Whether it was the connection that failed, and not the command. */
export const isLost = (error: Error): boolean => error.name !== "ReplyError"
