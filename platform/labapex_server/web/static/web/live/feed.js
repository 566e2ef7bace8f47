// The page's line to the platform. The cursor is the truth: after any interruption the page asks for what follows it,
// so that a lost connection, a restarted server or a sleeping laptop costs no point.

const NOT_FOUND = 4404, BAD_CURSOR = 4400; // close codes of the platform's `web.consumers`
const FIRST_WAIT = 400, LONGEST_WAIT = 15000, SILENCE = 45000;

export class Feed {
  // onEvents(message) returns false where the page must begin again; onState("connecting" | "open" | "lost", seconds).
  constructor(path, { query, onEvents, onState, onCursorRefused }) {
    this.path = path;
    this.query = query;
    this.onEvents = onEvents;
    this.onState = onState;
    this.onCursorRefused = onCursorRefused;
    this.failures = 0;
    this.closed = false;
    addEventListener("online", () => this.#retryNow());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#retryNow(); });
    addEventListener("pagehide", () => { this.closed = true; this.socket?.close(); });
    addEventListener("pageshow", (event) => { if (event.persisted) { this.closed = false; this.#connect(); } });
    this.onState("connecting", 0);
    this.#connect();
  }

  #connect() {
    clearTimeout(this.timer);
    if (this.failures) this.onState("lost", 0);
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}${this.path}?${this.query()}`);
    this.socket = socket;
    socket.onopen = () => { if (socket === this.socket) this.#listen(); };
    socket.onmessage = (message) => {
      if (socket !== this.socket) return;
      this.failures = 0;
      this.#listen();
      if (this.onEvents(JSON.parse(message.data)) === false) socket.close();
    };
    socket.onclose = (event) => { if (socket === this.socket) this.#lost(event); };
  }

  // A connection that says nothing for long may be dead without knowing it: ask again on a new one, from the cursor.
  #listen() {
    this.onState("open", 0);
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => { const silent = this.socket; this.#connect(); silent.close(); }, SILENCE);
  }

  #lost(event) {
    clearTimeout(this.watchdog);
    if (this.closed) return;
    if (event.code === NOT_FOUND) { this.onState("refused", 0); return; }
    if (event.code === BAD_CURSOR) this.onCursorRefused();
    this.failures += 1;
    const wait = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** (this.failures - 1)) * (0.75 + Math.random() / 2);
    this.onState("lost", Math.ceil(wait / 1000));
    this.timer = setTimeout(() => this.#connect(), wait);
  }

  #retryNow() {
    if (!this.closed && this.socket?.readyState === WebSocket.CLOSED) this.#connect();
  }
}
