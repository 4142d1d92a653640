/**
 * Collects what is asked for within one turn of the event loop, so that it can be
 * asked of Redis at once: one command, one reply and one promise for many.
 */
export interface PerTurn<A> {
  readonly add: (item: A) => void
  /** Counts the text of the item that is added next, in characters; hands over what was collected if both are too much. */
  readonly makeRoom: (size: number) => void
  /** Hands over now what was collected, to keep the order with what is sent directly. */
  readonly flush: () => void
}

/** How much text is handed over at once at most, unless it is one item, in characters. */
const mostText = 4 * 1024 * 1024

/** Hands over at the end of the turn, and whenever `most` items have come together; then it calls `onFull`. */
export const make = <A>(
  handOver: (items: Array<A>) => void,
  most = Number.POSITIVE_INFINITY,
  onFull: () => void = () => {}
): PerTurn<A> => {
  let items: Array<A> = []
  let text = 0
  let scheduled = false
  const flush = () => {
    if (items.length === 0) return
    const collected = items
    items = []
    text = 0
    handOver(collected)
  }
  const onTurn = () => {
    scheduled = false
    flush()
  }
  return {
    makeRoom: (size) => {
      if (text + size > mostText) flush()
      text += size
    },
    add: (item) => {
      if (items.push(item) >= most) {
        flush()
        return onFull()
      }
      if (scheduled) return
      scheduled = true
      process.nextTick(onTurn)
    },
    flush
  }
}
