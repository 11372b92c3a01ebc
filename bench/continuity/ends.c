/*
 * Both ends of the continuity bench's connections. Every connection is written into a ledger, by the end that made it
 * and by the end that took it; ledger/records.ts reads both and has the same layouts.
 *
 *     ends serve LEDGER INDEX,ADDRESS,PORT...
 *     ends connect LEDGER NUMBER WINDOW RATE HOLD BEAT TARGET...      TARGET: SERVICE,ADDRESS,PORT,SHARE
 *
 * `connect` keeps WINDOW short connections under way, RATE a second at most (0: as many as the machine makes), and HOLD
 * long ones, each of which passes a frame both ways every BEAT ms. SERVICE -1 is an address that is no service: a
 * connection to compare with. Both take a word a line from standard input and answer each with a line.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x6b6d6573u
#define NOBODY 0xffff
/* The tunnel's own limit is 10 s; it then tries another endpoint. */
#define PATIENCE_NS 30000000000ull
/* One connection in so many is closed in good order; the others reset, so that no port stays in TIME_WAIT. */
#define GRACEFUL 32

/* What passes, both ways. The bytes depend on who sends what to whom, so none can be taken for another's. */
struct frame {
	uint32_t magic;
	uint16_t service;
	uint16_t endpoint; /* NOBODY from the client */
	uint64_t id;
	uint64_t turn;
	uint64_t body[5];
};

enum kind { SHORT = 1, OPENED = 2, CLOSED = 3, DIRECT = 4 };
enum flaw { WRONG_BYTES = 1, WRONG_PEER = 2, NO_CONNECT = 4, NO_ANSWER = 8, AT_ONCE = 16 /* connect() itself said no */ };

/* The client's entry. */
struct made {
	uint64_t id;
	uint64_t began; /* CLOCK_MONOTONIC, ns, before connect() */
	uint32_t connect_ns; /* how long connect() took */
	uint32_t total_us; /* until the answer */
	uint16_t service;
	uint16_t endpoint; /* who answered, or NOBODY */
	uint16_t error;
	uint8_t kind;
	uint8_t flaws;
	uint32_t sent; /* payload bytes of the whole connection, as far as it went */
	uint32_t received;
};

/* The server's. */
struct taken {
	uint64_t id;
	uint16_t service; /* that the client says it wanted */
	uint16_t endpoint;
	uint16_t error;
	uint16_t flaws;
};

static char *ledger_path;
static int ledger_fd;
static char ledger_buffer[1 << 16];
static size_t ledger_used;
static int poller;

static void die(const char *what)
{
	fprintf(stderr, "ends: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void flush_ledger(void)
{
	for (size_t at = 0; at < ledger_used;) {
		ssize_t n = write(ledger_fd, ledger_buffer + at, ledger_used - at);

		if (n <= 0)
			die(ledger_path);
		at += n;
	}
	ledger_used = 0;
}

static void enter(const void *entry, size_t size)
{
	if (ledger_used + size > sizeof(ledger_buffer))
		flush_ledger();
	memcpy(ledger_buffer + ledger_used, entry, size);
	ledger_used += size;
}

static void open_ledger(char *path)
{
	ledger_path = path;
	ledger_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (ledger_fd < 0)
		die(path);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static void fill(struct frame *f)
{
	uint64_t seed = f->id ^ f->turn << 40 ^ (uint64_t)f->service << 16 ^ f->endpoint;

	f->magic = MAGIC;
	for (int i = 0; i < 5; i++)
		f->body[i] = mix(seed + i);
}

static bool intact(const struct frame *f)
{
	struct frame same = *f;

	fill(&same);
	return !memcmp(&same, f, sizeof(same));
}

static socklen_t address_of(struct sockaddr_storage *to, const char *text, int port)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)to;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		return sizeof(*v4);
	}
	if (inet_pton(AF_INET6, text, &v6->sin6_addr) != 1)
		die(text);
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(port);
	return sizeof(*v6);
}

static void option(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof(value)))
		die("setsockopt");
}

static void watch(int fd, uint32_t events, void *who)
{
	struct epoll_event event = { .events = events, .data.ptr = who };

	if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

static void say(const char *word, uint64_t number)
{
	printf("%s %llu\n", word, (unsigned long long)number);
	fflush(stdout);
}

/* Gives the next line of standard input, or NULL when there is none yet. Its end is ours. */
static char *next_word(void)
{
	static char text[4096];
	static size_t used;
	static char word[256];
	char *end = memchr(text, '\n', used);

	if (!end) {
		ssize_t n = read(0, text + used, sizeof(text) - used);

		if (n == 0)
			exit(0);
		if (n > 0)
			used += n;
		end = memchr(text, '\n', used);
	}
	if (!end)
		return NULL;
	*end = 0;
	snprintf(word, sizeof(word), "%.255s", text);
	used -= end + 1 - text;
	memmove(text, end + 1, used);
	return word;
}

/* ---- the end that takes connections ---- */

/* A listener or a connection that it took. */
struct taker {
	int fd;
	bool listens;
	bool greeted;
	uint16_t endpoint;
	uint16_t service;
	uint64_t id;
	uint64_t turn;
	size_t have;
	struct frame frame;
};

static void drop(struct taker *t, int error, int flaws)
{
	if (error || flaws || (t->have && t->have < sizeof(t->frame))) {
		struct taken entry = { t->id, t->service, t->endpoint, error, flaws ? flaws : NO_ANSWER };

		enter(&entry, sizeof(entry));
	}
	close(t->fd);
	free(t);
}

static void take(struct taker *listener)
{
	for (;;) {
		int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		struct taker *t;

		if (fd < 0) {
			if (errno == EAGAIN)
				return;
			/* The client reset it in the queue: its entry says why. */
			if (errno == ECONNABORTED)
				continue;
			die("accept");
		}
		t = calloc(1, sizeof(*t));
		if (!t)
			die("calloc");
		t->fd = fd;
		t->endpoint = listener->endpoint;
		option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
		watch(fd, EPOLLIN, t);
	}
}

/* False when the connection is over. */
static bool answer(struct taker *t)
{
	struct frame *f = &t->frame;

	t->have = 0;
	if (!intact(f) || f->endpoint != NOBODY || (t->greeted && (f->id != t->id || f->turn != t->turn + 1))) {
		drop(t, 0, WRONG_BYTES);
		return false;
	}
	if (!t->greeted) {
		struct taken entry = { f->id, f->service, t->endpoint, 0, 0 };

		enter(&entry, sizeof(entry));
		t->greeted = true;
		t->id = f->id;
		t->service = f->service;
	}
	t->turn = f->turn;
	f->endpoint = t->endpoint;
	fill(f);
	if (send(t->fd, f, sizeof(*f), MSG_NOSIGNAL) != sizeof(*f)) {
		drop(t, errno, NO_ANSWER);
		return false;
	}
	return true;
}

static void hear(struct taker *t)
{
	for (;;) {
		ssize_t n = recv(t->fd, (char *)&t->frame + t->have, sizeof(t->frame) - t->have, 0);

		if (n < 0 && errno == EAGAIN)
			return;
		/* Clients end most connections with a reset. */
		if (n <= 0) {
			drop(t, n < 0 && errno != ECONNRESET ? errno : 0, 0);
			return;
		}
		t->have += n;
		if (t->have == sizeof(t->frame) && !answer(t))
			return;
	}
}

static void serve(int count, char **listeners)
{
	static struct taker input;
	struct epoll_event events[256];

	fcntl(0, F_SETFL, O_NONBLOCK);
	watch(0, EPOLLIN, &input);
	for (int i = 0; i < count; i++) {
		struct taker *t = calloc(1, sizeof(*t));
		struct sockaddr_storage at;
		char address[64];
		int index, port;
		socklen_t size;

		if (!t || sscanf(listeners[i], "%d,%63[^,],%d", &index, address, &port) != 3)
			die(listeners[i]);
		size = address_of(&at, address, port);
		t->listens = true;
		t->endpoint = index;
		t->fd = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		option(t->fd, SOL_SOCKET, SO_REUSEADDR, 1);
		if (bind(t->fd, (struct sockaddr *)&at, size) || listen(t->fd, 4096))
			die(listeners[i]);
		watch(t->fd, EPOLLIN, t);
	}
	say("ready", count);
	for (;;) {
		int n = epoll_wait(poller, events, 256, -1);

		for (int i = 0; i < n; i++) {
			struct taker *t = events[i].data.ptr;

			if (t == &input) {
				while (next_word()) {
					flush_ledger();
					say("flushed", 0);
				}
			} else if (t->listens) {
				take(t);
			} else {
				hear(t);
			}
		}
	}
}

/* ---- the end that makes connections ---- */

struct target {
	uint16_t service;
	struct sockaddr_storage address;
	socklen_t size;
};

enum stage { FREE, CONNECTING, ASKED, IDLE };

struct maker {
	int fd;
	enum stage stage;
	bool held;
	uint16_t service;
	uint16_t endpoint;
	const struct target *target;
	uint64_t id;
	uint64_t turn;
	uint64_t began;
	uint64_t asked; /* when the last frame went out */
	uint64_t due; /* when the next one goes */
	uint32_t connect_ns;
	uint8_t flaws;
	uint32_t sent;
	uint32_t received;
	size_t have;
	struct frame frame;
};

static struct maker *makers;
static struct maker **idle_makers;
static int idle_count;
static struct target *deck;
static int deck_size, deck_at;
/* Targets for long connections: the services that answer. */
static struct target **homes;
static int home_count, home_at;
static int window, hold, beat;
static uint64_t rate, number, next_id;
static int under_way, held, opening;
/* A long connection that did not open is not tried again at once, ns. */
#define AGAIN_AFTER 10000000ull
static uint64_t no_opening_before;
static bool going, paused_said, ending;
/* Oldest first. */
static struct maker **holders;
static int holder_count;
static uint64_t began_going, made_since;

static void note(const struct maker *m, enum kind kind, int error)
{
	uint64_t took = (now() - m->began) / 1000;
	struct made entry = {
		.id = m->id,
		.began = m->began,
		.connect_ns = m->connect_ns,
		.total_us = took > UINT32_MAX ? UINT32_MAX : took,
		.service = m->service,
		.endpoint = m->endpoint,
		.error = error,
		.kind = kind,
		.flaws = m->flaws,
		.sent = m->sent,
		.received = m->received,
	};

	enter(&entry, sizeof(entry));
}

static enum kind kind_of(const struct maker *m)
{
	if (m->held)
		return m->endpoint == NOBODY ? OPENED : CLOSED;
	return m->service == NOBODY ? DIRECT : SHORT;
}

/* The connection is over: by an error, or since it is done. */
static void end(struct maker *m, int error)
{
	enum kind kind = kind_of(m);

	if (m->held && kind == OPENED) {
		opening--;
		no_opening_before = now() + AGAIN_AFTER;
	}
	if (m->held) {
		for (int i = 0; i < holder_count; i++) {
			if (holders[i] != m)
				continue;
			memmove(holders + i, holders + i + 1, (holder_count - i - 1) * sizeof(*holders));
			holder_count--;
			break;
		}
		held--;
	} else {
		under_way--;
	}
	note(m, kind, error);
	if (m->fd >= 0) {
		if (error || m->id % GRACEFUL) {
			struct linger reset = { .l_onoff = 1, .l_linger = 0 };

			setsockopt(m->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		}
		close(m->fd);
	}
	m->stage = FREE;
	idle_makers[idle_count++] = m;
}

static void ask(struct maker *m)
{
	struct frame f = { .service = m->service, .endpoint = NOBODY, .id = m->id, .turn = ++m->turn };
	ssize_t n;

	fill(&f);
	n = send(m->fd, &f, sizeof(f), MSG_NOSIGNAL);
	if (n < 0 && (errno == EAGAIN || errno == ENOTCONN) && m->stage == CONNECTING) {
		m->turn--;
		return;
	}
	if (n != sizeof(f)) {
		int error = n < 0 ? errno : EIO;

		m->flaws |= m->stage == CONNECTING ? NO_CONNECT : NO_ANSWER;
		end(m, error);
		return;
	}
	m->stage = ASKED;
	m->asked = now();
	m->sent += n;
	m->have = 0;
}

static void make(bool holding, const struct target *target)
{
	struct maker *m = idle_makers[--idle_count];
	int result;

	*m = (struct maker){
		.held = holding,
		.service = target->service,
		.endpoint = NOBODY,
		.target = target,
		.id = number << 40 | next_id++,
		.stage = CONNECTING,
	};
	if (holding) {
		held++;
		opening++;
		holders[holder_count++] = m;
	} else {
		under_way++;
	}
	m->fd = socket(target->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (m->fd < 0)
		die("socket");
	option(m->fd, IPPROTO_TCP, TCP_NODELAY, 1);
	m->began = now();
	result = connect(m->fd, (const struct sockaddr *)&target->address, target->size);
	m->connect_ns = now() - m->began;
	m->asked = m->began;
	if (result && errno != EINPROGRESS) {
		int error = errno;

		m->flaws |= NO_CONNECT | AT_ONCE;
		end(m, error);
		return;
	}
	watch(m->fd, EPOLLIN | EPOLLOUT | EPOLLET, m);
	ask(m);
}

/* The app sees the address that it asked for. */
static bool sees_target(const struct maker *m)
{
	struct sockaddr_storage peer;
	socklen_t size = sizeof(peer);

	memset(&peer, 0, sizeof(peer));
	if (getpeername(m->fd, (struct sockaddr *)&peer, &size))
		return false;
	return size == m->target->size && !memcmp(&peer, &m->target->address, size);
}

static void check_answer(struct maker *m)
{
	const struct frame *f = &m->frame;

	if (!intact(f) || f->id != m->id || f->turn != m->turn || f->service != m->service ||
	    (m->endpoint != NOBODY && f->endpoint != m->endpoint)) {
		m->flaws |= WRONG_BYTES;
		end(m, 0);
		return;
	}
	if ((m->held || m->id % 16 == 0) && !sees_target(m))
		m->flaws |= WRONG_PEER;
	if (!m->held) {
		m->endpoint = f->endpoint;
		end(m, 0);
		return;
	}
	if (m->endpoint == NOBODY) {
		m->endpoint = f->endpoint;
		opening--;
		note(m, OPENED, 0);
	} else if (m->flaws) {
		end(m, 0);
		return;
	}
	m->stage = IDLE;
	m->due = now() + (beat + m->id % 64) * 1000000ull;
}

static void hear_answer(struct maker *m)
{
	for (;;) {
		ssize_t n = recv(m->fd, (char *)&m->frame + m->have, sizeof(m->frame) - m->have, 0);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			m->flaws |= m->stage == CONNECTING ? NO_CONNECT : NO_ANSWER;
			end(m, n < 0 ? errno : ECONNRESET);
			return;
		}
		m->have += n;
		m->received += n;
		if (m->have < sizeof(m->frame))
			continue;
		m->have = 0;
		check_answer(m);
		if (m->stage == FREE || !m->held)
			return;
	}
}

static void attend(struct maker *m, uint32_t events)
{
	if (m->stage == CONNECTING) {
		int error = 0;
		socklen_t size = sizeof(error);

		if (events & (EPOLLERR | EPOLLHUP)) {
			getsockopt(m->fd, SOL_SOCKET, SO_ERROR, &error, &size);
			m->flaws |= NO_CONNECT;
			end(m, error ? error : ECONNRESET);
			return;
		}
		if (!(events & EPOLLOUT))
			return;
		ask(m);
		if (m->stage != ASKED)
			return;
	}
	if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
		hear_answer(m);
}

/* One that waits for an answer is left alone: the server would find nobody to give it to. */
static bool close_oldest(void)
{
	for (int i = 0; i < holder_count; i++) {
		if (holders[i]->stage != IDLE)
			continue;
		end(holders[i], 0);
		return true;
	}
	return false;
}

static void obey(const char *word)
{
	int count;

	if (!strcmp(word, "go")) {
		going = true;
		began_going = now();
		made_since = 0;
		say("going", next_id);
	} else if (!strcmp(word, "pause")) {
		going = false;
		paused_said = false;
	} else if (!strcmp(word, "end")) {
		going = false;
		paused_said = false;
		ending = true;
		hold = 0;
	} else if (sscanf(word, "churn %d", &count) == 1) {
		for (int i = 0; i < count && close_oldest(); i++)
			;
		say("churning", count);
	} else {
		errno = EINVAL;
		die(word);
	}
}

static void start_due(void)
{
	uint64_t allowed = UINT64_MAX;

	/* Long ones first; a few at once, as an app would. */
	while (held < hold && opening < 32 && idle_count && now() >= no_opening_before)
		make(true, homes[home_at++ % home_count]);
	if (!going)
		return;
	if (rate)
		allowed = (now() - began_going) * rate / 1000000000ull;
	for (int i = 0; i < 64 && under_way < window && made_since < allowed && idle_count; i++) {
		make(false, &deck[deck_at++ % deck_size]);
		made_since++;
	}
}

static void tick(uint64_t at)
{
	if (ending)
		while (close_oldest())
			;
	for (int i = 0; i < window + hold + 64; i++) {
		struct maker *m = &makers[i];

		if (m->stage == IDLE && m->due <= at) {
			ask(m);
		} else if ((m->stage == ASKED || m->stage == CONNECTING) && at > m->asked + PATIENCE_NS) {
			m->flaws |= m->stage == CONNECTING ? NO_CONNECT : NO_ANSWER;
			end(m, ETIMEDOUT);
		}
	}
}

/* Turns the shares of the targets into a deck, dealt in an order of its own. */
static void deal(int count, char **texts)
{
	uint64_t order = number;

	deck = calloc(count * 256, sizeof(*deck));
	homes = calloc(count, sizeof(*homes));
	if (!deck || !homes)
		die("calloc");
	for (int i = 0; i < count; i++) {
		struct target target;
		char address[64];
		int service, port, share;

		if (sscanf(texts[i], "%d,%63[^,],%d,%d", &service, address, &port, &share) != 4 || share > 256)
			die(texts[i]);
		target.service = service;
		target.size = address_of(&target.address, address, port);
		for (int j = 0; j < share; j++)
			deck[deck_size++] = target;
		/* A small share is one that is refused or fails. */
		if (service >= 0 && share > 1) {
			homes[home_count] = malloc(sizeof(target));
			*homes[home_count++] = target;
		}
	}
	for (int i = deck_size - 1; i > 0; i--) {
		int j = (order = mix(order)) % (i + 1);
		struct target other = deck[i];

		deck[i] = deck[j];
		deck[j] = other;
	}
}

static void connect_all(int argc, char **argv)
{
	static struct maker input;
	struct epoll_event events[256];
	uint64_t ticked = 0;
	int all;

	number = atoi(argv[0]);
	window = atoi(argv[1]);
	rate = atoi(argv[2]);
	hold = atoi(argv[3]);
	beat = atoi(argv[4]);
	deal(argc - 5, argv + 5);
	/* Room for those that take the place of others. */
	all = window + hold + 64;
	makers = calloc(all, sizeof(*makers));
	idle_makers = calloc(all, sizeof(*idle_makers));
	holders = calloc(all, sizeof(*holders));
	if (!makers || !idle_makers || !holders)
		die("calloc");
	for (int i = 0; i < all; i++)
		idle_makers[idle_count++] = &makers[all - 1 - i];
	fcntl(0, F_SETFL, O_NONBLOCK);
	watch(0, EPOLLIN, &input);
	paused_said = true;
	say("ready", deck_size);
	for (;;) {
		uint64_t at = now();
		int n;

		if (at > ticked + 5000000) {
			ticked = at;
			tick(at);
		}
		start_due();
		/* All that was begun is settled; the long ones are open, or what is left of them when it ends. */
		if (!paused_said && !going && !under_way && !opening && (ending ? !held : held == hold)) {
			paused_said = true;
			flush_ledger();
			say("paused", next_id);
		}
		n = epoll_wait(poller, events, 256, going && !rate && under_way < window ? 0 : 2);
		for (int i = 0; i < n; i++) {
			struct maker *m = events[i].data.ptr;
			char *word;

			if (m == &input) {
				while ((word = next_word()))
					obey(word);
			} else if (m->stage != FREE) {
				attend(m, events[i].events);
			}
		}
	}
}

int main(int argc, char **argv)
{
	struct rlimit files;

	if (argc < 4 || (strcmp(argv[1], "serve") && (strcmp(argv[1], "connect") || argc < 9))) {
		fprintf(stderr, "usage: ends serve LEDGER LISTENER... | ends connect LEDGER NUMBER WINDOW RATE HOLD BEAT TARGET...\n");
		return 2;
	}
	if (getrlimit(RLIMIT_NOFILE, &files))
		die("RLIMIT_NOFILE");
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files))
		die("RLIMIT_NOFILE");
	open_ledger(argv[2]);
	poller = epoll_create1(EPOLL_CLOEXEC);
	if (poller < 0)
		die("epoll_create1");
	if (!strcmp(argv[1], "serve"))
		serve(argc - 3, argv + 3);
	else
		connect_all(argc - 3, argv + 3);
	return 0;
}
