/** The dead letters of a channel, and what may be done about them. */
import { $, clock, h, kept, say, table } from "./dom.js"
import { post, token } from "./token.js"

const limit = 50
let offset = 0
let shown = []
let total = 0
let chosen = ""
const selected = new Set()

const action = async (what, ids) => {
  const all = ids === "all"
  const which = all
    ? `all ${total} dead letters of ${chosen}`
    : ids.length === 1
      ? ids[0]
      : `${ids.length} dead letters`
  if ((what === "discard" || all) && !(await isSure(what, which))) return
  const { body, status } = await post(what, { channel: chosen, ids })
  if (status === 200) {
    for (const id of all ? [...selected] : ids) selected.delete(id)
    say(`${body.count} ${what === "redrive" ? "redriven" : "discarded"}`, "good")
  } else say(`Not done: ${body?.detail ?? `status ${status}`}`, "bad")
  await load()
}

const words = {
  redrive: ["Redrive", "They run again, with all their attempts before them."],
  discard: ["Discard", "What is discarded cannot be brought back."]
}
const isSure = (what, which) =>
  new Promise((resolve) => {
    const dialog = $("sure-dialog")
    const [word, consequence] = words[what]
    $("h-sure").textContent = `${word} ${which}?`
    $("sure-consequence").textContent = consequence
    $("sure-ok").textContent = word
    $("sure-ok").className = what === "discard" ? "danger" : "primary"
    let sure = false
    $("sure-ok").onclick = () => {
      sure = true
      dialog.close()
    }
    $("sure-cancel").onclick = () => dialog.close()
    dialog.addEventListener("close", () => resolve(sure), { once: true })
    dialog.showModal()
  })

const pretty = (json) => {
  try {
    return JSON.stringify(JSON.parse(json), undefined, 2)
  } catch {
    return json
  }
}

const check = kept((id) => {
  const box = h("input", { type: "checkbox", "aria-label": `Select ${id}` })
  box.addEventListener("change", () => {
    if (box.checked) selected.add(id)
    else selected.delete(id)
    buttons()
  })
  return box
})
const checkAll = h("input", { type: "checkbox", "aria-label": "Select all that are shown" })
checkAll.addEventListener("change", () => {
  for (const { id } of shown) {
    if (checkAll.checked) selected.add(id)
    else selected.delete(id)
  }
  redraw()
})
const buttonsOf = kept((id) =>
  h(
    "span",
    { class: "bar" },
    h("button", { class: "redrive", click: () => action("redrive", [id]), "aria-label": `Redrive ${id}` }, "Redrive"),
    h(
      "button",
      { class: "discard danger", click: () => action("discard", [id]), "aria-label": `Discard ${id}` },
      "Discard"
    )
  )
)
const detailsOf = kept((_, letter) => {
  return h(
    "details",
    {},
    h("summary", { "aria-label": `Inspect ${letter.id}` }, letter.lastError.split("\n", 1)[0] || "no message"),
    h("p", {}, "Payload"),
    h("pre", { class: "payload" }, pretty(letter.encoded)),
    h("p", {}, `First error`),
    h("pre", {}, letter.firstError),
    h("p", {}, "Last error"),
    h("pre", {}, letter.lastError)
  )
})

const keyOf = ({ diedAt, id }) => `${chosen} ${id} ${diedAt}`
const draw = table(
  $("letters"),
  "Dead letters",
  [
    [checkAll, ({ id }) => check(id), "pick"],
    ["Id", ({ id }) => id, "code"],
    ["Why", ({ reason }) => reason],
    ["Attempts", ({ attempts }) => attempts, "number"],
    ["Died", ({ diedAt }) => clock(diedAt), "nowrap"],
    ["Error and payload", (letter) => detailsOf(keyOf(letter), letter)],
    ["Actions", ({ id }) => (token() === null ? "" : buttonsOf(id))]
  ],
  keyOf,
  "None"
)

const buttons = () => {
  const may = token() !== null && total > 0
  $("bulk").hidden = !may
  for (const what of ["redrive", "discard"]) {
    $(`${what}-selected`).disabled = selected.size === 0
    $(`${what}-selected`).textContent = `${words[what][0]} selected${selected.size === 0 ? "" : ` (${selected.size})`}`
  }
  checkAll.checked = shown.length > 0 && shown.every(({ id }) => selected.has(id))
  $("older").hidden = offset === 0
  $("newer").hidden = offset + limit >= total
  $("range").textContent =
    total === 0 ? "" : `${offset + 1}–${Math.min(offset + limit, total)} of ${total}, oldest first`
}

/** What had the focus may be gone: then it goes to the same button of the row that is there now, or to what is near. */
const keepFocus = (change) => {
  const had = document.activeElement
  const place = had.closest("#letters tbody tr")?.rowIndex
  change()
  if (had.isConnected && !had.disabled && had.closest("[hidden]") === null) return
  const rows = $("letters").querySelectorAll("tbody tr")
  const next =
    had === $("older")
      ? $("newer")
      : had === $("newer")
        ? $("older")
        : rows[Math.min(place, rows.length) - 1]?.querySelector(`button.${had.classList[0]}`)
  ;(next ?? $("channel")).focus()
}

export const redraw = () =>
  keepFocus(() => {
    draw(shown)
    for (const { id } of shown) check(id).checked = selected.has(id)
    buttons()
  })

/** Where the page that was asked for begins; `offset` is that of the one that is shown. */
let wanted = 0
let asked = 0
const load = async () => {
  if (chosen === "") return
  const [number, at] = [++asked, wanted]
  const query = new URLSearchParams({ channel: chosen, offset: String(at), limit: String(limit) })
  const response = await fetch(`console/api/dead-letters?${query}`).catch(() => undefined)
  if (response?.ok !== true) return
  const found = await response.json()
  // Asked again meanwhile.
  if (number !== asked) return
  if (found.length === 0 && at > 0) {
    wanted = Math.max(0, at - limit)
    return load()
  }
  shown = found
  offset = at
  redraw()
}

const choose = (channel) => {
  chosen = channel
  $("channel").value = channel
  offset = wanted = 0
  shown = []
  selected.clear()
  return load()
}

export const inspect = (channel) => {
  $("dead").scrollIntoView()
  $("channel").focus({ preventScroll: true })
  return choose(channel)
}

let was = ""
export const update = (channels) => {
  const names = channels.map(({ channel }) => channel)
  const options = [...$("channel").options].map(({ value }) => value)
  if (names.join("\n") !== options.join("\n")) {
    $("channel").replaceChildren(...names.map((name) => h("option", { value: name }, name)))
    $("channel").value = chosen
  }
  if (!names.includes(chosen)) {
    const first = channels.find(({ depth }) => depth.value?.dead > 0) ?? channels[0]
    if (first !== undefined) choose(first.channel)
  }
  const dead = channels.find(({ channel }) => channel === chosen)?.depth.value?.dead
  if (dead === undefined) return
  total = dead
  const now = `${chosen} ${dead}`
  if (now !== was) load()
  was = now
  redraw()
}

$("channel").addEventListener("change", () => choose($("channel").value))
const turn = (pages) => {
  wanted = Math.max(0, offset + pages * limit)
  return load()
}
$("older").addEventListener("click", () => turn(-1))
$("newer").addEventListener("click", () => turn(1))
for (const what of ["redrive", "discard"]) {
  $(`${what}-selected`).addEventListener("click", () => action(what, [...selected]))
  $(`${what}-all`).addEventListener("click", () => action(what, "all"))
}
