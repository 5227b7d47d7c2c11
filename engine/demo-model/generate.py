"""Writes the training text of the demo model: seeded, endless, and all our own.

A document is a chat (or a plain paragraph) about one or more subjects of subjects.txt. The fragments
there carry the facts; this file turns them into questions people really type and into answers that keep
to the subject of the question. A small model learns such a language completely, which is the point: its
answers are grammatical, end by themselves, and show a person at a glance whether an engine computes
correctly.

Run it to look at samples:  python generate.py --count 3 --seed 1
"""

import argparse
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

START, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = [STOP, START, END]
# Characters per token of the trained tokenizer on this text, rounded down; only sizes depend on it.
CHARS_PER_TOKEN = 3.7
LONGEST_HANDBOOK = 640


# ---- subjects -------------------------------------------------------------------------------------


@dataclass
class Subject:
    name: str
    article: str
    aliases: list
    lines: dict = field(default_factory=dict)

    def the(self):
        return self.name if self.article == "-" else f"the {self.name}"

    def a(self):
        return f"{self.article} {self.name}" if self.article in ("a", "an") else self.the()

    def plural(self):
        if self.article not in ("a", "an"):
            return self.name
        if self.name.endswith("y") and self.name[-2] not in "aeiou":
            return self.name[:-1] + "ies"
        return self.name + ("es" if self.name.endswith("ch") else "s")

    def pick(self, rng, mark, count=1):
        """Up to `count` different fragments of one kind, in the order of the file.

        With one order, what was said already decides what may follow, so a small model learns not to
        repeat itself.
        """
        have = self.lines[mark]
        chosen = rng.sample(range(len(have)), min(count, len(have)))
        return [have[index] for index in sorted(chosen)]


def read_subjects(path):
    subjects = []
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            name, article, *aliases = (part.strip() for part in line.strip("[]").split("|"))
            subjects.append(Subject(name, article, aliases))
            continue
        mark, fragment = line.split(" ", 1)
        subjects[-1].lines.setdefault(mark, []).append(fragment)
    return subjects


SUBJECTS = read_subjects(Path(__file__).resolve().parent / "subjects.txt")


def base_form(phrase):
    """The phrase with its verb as it stands after "does": "keeps x" becomes "keep x"."""
    verb, _, rest = phrase.partition(" ")
    if verb == "has":
        verb = "have"
    elif verb.endswith("ies"):
        verb = verb[:-3] + "y"
    elif verb.endswith(("sses", "ches", "shes", "xes", "oes")):
        verb = verb[:-2]
    else:
        verb = verb[:-1]
    return f"{verb} {rest}"


def rename(question, s, alias):
    """The question with another name of its subject, and with the article that this name needs."""
    articles = {"a": "an " if alias[0] in "aeiouAEIO" or alias == "LLM" else "a ", "the": "the ", "": ""}
    if alias.endswith(("ing", "ies")):
        articles = {"a": "", "the": "", "": ""}

    def renamed(match):
        return articles[(match[1] or "").strip().replace("an", "a")] + alias

    return re.sub(rf"\b(a |an |the )?{s.name}\b", renamed, question)


def sentence(text):
    return text[0].upper() + text[1:] + "."


# ---- sentences of an answer -----------------------------------------------------------------------


def definition(rng, s):
    return sentence(f"{s.a() if rng.random() < 0.7 else s.the()} is {s.pick(rng, '=')[0]}")


def abilities(rng, s, count):
    """What the subject does: named once, then called "it"."""
    verbs = s.pick(rng, ">", count)
    heads = [s.the(), "it", "it also", "it also"]
    return [sentence(f"{head} {verb}") for head, verb in zip(heads, verbs)]


def more_abilities(rng, s, count, but=None):
    """Abilities of a subject that the sentence before has named; `but` is the one already told."""
    verbs = [verb for verb in s.pick(rng, ">", count + 1) if verb != but][:count]
    return [sentence(f"{'it' if i == 0 else 'it also'} {verb}") for i, verb in enumerate(verbs)]


def steps(rng, s):
    first, second, third = s.lines["1"]
    if first.startswith("it "):
        first = s.the() + first[2:]
    heads = rng.choice([("First, ", "Then ", "After that, "), ("First, ", "Next, ", "In the end, "), ("", "Then ", "Finally, ")])
    return [sentence(head + clause) for head, clause in zip(heads, (first, second, third))]


def reasons(rng, s, count=1):
    clauses = s.pick(rng, "?", count)
    head = rng.choice([f"{s.the()} matters because", f"{s.the()} is useful because", f"we need {s.the()} because"])
    out = [sentence(f"{head} {clauses[0]}")]
    if len(clauses) > 1:
        out.append(sentence(f"another reason is that {clauses[1]}"))
    return out


def troubles(rng, s, count=1):
    clauses = s.pick(rng, "!", count)
    head = rng.choice([f"{s.the()} becomes a problem when", f"with {s.the()}, trouble begins when", f"{s.the()} causes trouble when"])
    out = [sentence(f"{head} {clauses[0]}")]
    if len(clauses) > 1:
        out.append(sentence(f"things also go wrong when {clauses[1]}"))
    return out


def remedies(rng, s, count=2):
    actions = s.pick(rng, "+", count)
    head = rng.choice(["you can", "it helps to", "a good first step is to", "the best way is to"])
    out = [sentence(f"{head} {actions[0]}")]
    if len(actions) > 1:
        out.append(sentence(rng.choice(["you can also", "if that is not enough,", "it also helps to"]) + f" {actions[1]}"))
    return out


def measures(rng, s, count=1):
    numbers = s.pick(rng, "%", count)
    head = rng.choice([f"to understand {s.the()}, watch", "watch", "the number to watch is", "look at"])
    out = [sentence(f"{head} {numbers[0]}")]
    if len(numbers) > 1:
        out.append(sentence(f"it is also good to know {numbers[1]}"))
    return out


# ---- questions about one subject ------------------------------------------------------------------


def ask_definition(rng, s):
    questions = [f"What is {s.a()}?", f"What is {s.the()}?", f"Explain {s.the()}.", f"What does {s.name} mean?",
                 f"Define {s.name}.", f"Tell me about {s.the()}.", f"Describe {s.the()}.", f"What's {s.a()}?",
                 f"Can you explain {s.the()}?", f"I want to know what {s.a()} is.", f"{s.name}?"]
    if s.article in ("a", "an"):
        questions += [f"What are {s.plural()}?", f"Tell me about {s.plural()}."]
    if s.aliases:
        questions += [f"What is {rng.choice(s.aliases)}?", f"Explain {rng.choice(s.aliases)}."]
    rest = rng.choice([more_abilities(rng, s, 1), more_abilities(rng, s, 2), reasons(rng, s), []])
    return rng.choice(questions), [definition(rng, s)] + rest


def ask_purpose(rng, s):
    questions = [f"What does {s.the()} do?", f"What is {s.the()} for?", f"What is the job of {s.the()}?",
                 f"What does {s.a()} do?", f"What can {s.the()} do?", f"What is the purpose of {s.the()}?",
                 f"What is the role of {s.the()}?"]
    return rng.choice(questions), abilities(rng, s, rng.randint(1, 3))


def ask_working(rng, s):
    questions = [f"How does {s.the()} work?", f"How does {s.a()} work?", f"Explain how {s.the()} works.",
                 f"How does {s.name} work?", f"Show me how {s.the()} works.", f"Explain step by step how {s.the()} works.",
                 f"What happens inside {s.the()}?"]
    lead = abilities(rng, s, 1) if rng.random() < 0.3 else []
    return rng.choice(questions), lead + steps(rng, s)


def ask_reason(rng, s):
    questions = [f"Why do I need {s.a()}?", f"Why do we need {s.the()}?", f"Why is {s.the()} important?",
                 f"Why does {s.the()} matter?", f"Why should I use {s.a()}?", f"Why use {s.a()}?",
                 f"What is good about {s.the()}?", f"Do I need {s.a()}?", f"Is {s.the()} useful?"]
    rest = more_abilities(rng, s, 1) if rng.random() < 0.4 else []
    return rng.choice(questions), reasons(rng, s, rng.randint(1, 2)) + rest


def ask_ability(rng, s):
    """A question that already names what the subject does, such as "How does the picker choose a worker?"."""
    verb = s.pick(rng, ">")[0]
    if rng.random() < 0.3:
        return rng.choice([f"What {verb}?", f"Which part {verb}?"]), [sentence(f"{s.the()} {verb}")] + more_abilities(rng, s, 1, verb)
    if " and " in verb:
        return ask_working(rng, s)
    asked = base_form(verb)
    if rng.random() < 0.6:
        shorter = asked.split(" for ")[0].split(" when ")[0].split(" that ")[0]
        return f"How does {s.the()} {rng.choice([asked, shorter])}?", steps(rng, s)
    return rng.choice([f"Why does {s.the()} {asked}?", f"Does {s.the()} {asked}?"]), [sentence(f"{s.the()} {verb}")] + reasons(rng, s)


def ask_trouble(rng, s):
    questions = [f"What can go wrong with {s.the()}?", f"When is {s.the()} a problem?", f"Why is my {s.name} slow?",
                 f"What is wrong with my {s.name}?", f"Why is {s.the()} so slow?", f"Why is my {s.name} so bad?",
                 f"What problems does {s.the()} have?", f"I have trouble with {s.the()}.", f"My {s.name} is slow.",
                 f"Why does {s.the()} fail?", f"What happens when {s.the()} fails?",
                 f"What happens if {s.a()} fails?", f"What if {s.the()} breaks?"]
    rest = remedies(rng, s, 1) if rng.random() < 0.6 else []
    return rng.choice(questions), troubles(rng, s, rng.randint(1, 2)) + rest


def ask_remedy(rng, s):
    questions = [f"How can I improve {s.the()}?", f"How do I fix {s.the()}?", f"How do I tune {s.the()}?",
                 f"How can I make {s.the()} better?", f"How do I make my {s.name} faster?", f"What should I do about {s.the()}?",
                 f"How should I use {s.the()}?", f"Give me some advice about {s.the()}.", f"How can I speed up {s.the()}?",
                 f"How do I configure {s.the()}?"]
    return rng.choice(questions), remedies(rng, s, rng.randint(1, 2))


def ask_measure(rng, s):
    questions = [f"How do I measure {s.the()}?", f"Which number shows {s.the()}?", f"What should I watch for {s.the()}?",
                 f"How do I know whether {s.the()} is good?", f"How do I monitor {s.the()}?", f"Which metric should I watch for {s.the()}?",
                 f"How do I test {s.the()}?"]
    return rng.choice(questions), measures(rng, s, rng.randint(1, 2))


def ask_details(rng, s):
    questions = [f"Explain {s.the()} in detail.", f"Write a long answer about {s.the()}.", f"Tell me everything about {s.the()}.",
                 f"Write a short text about {s.the()}.", f"Give me an introduction to {s.the()}.", f"Write about {s.the()}."]
    parts = [definition(rng, s)] + more_abilities(rng, s, 1) + steps(rng, s) + reasons(rng, s)
    if rng.random() < 0.4:
        parts += troubles(rng, s) + remedies(rng, s, 1)
    return rng.choice(questions), parts


def ask_list(rng, s):
    questions = [f"List three facts about {s.the()}.", f"Give me three facts about {s.the()}.", f"Name three things about {s.the()}."]
    sentences = [definition(rng, s)] + more_abilities(rng, s, 1) + reasons(rng, s)
    return rng.choice(questions), ["\n".join(f"{i}. {text}" for i, text in enumerate(sentences, 1))]


ABOUT_ONE = [(ask_definition, 30), (ask_purpose, 14), (ask_working, 20), (ask_reason, 11), (ask_ability, 10), (ask_trouble, 13),
             (ask_remedy, 14), (ask_measure, 7), (ask_details, 5), (ask_list, 3)]


def question_about(rng, s):
    ask = rng.choices([a for a, _ in ABOUT_ONE], [w for _, w in ABOUT_ONE])[0]
    question, parts = ask(rng, s)
    if s.aliases and rng.random() < 0.25:
        question = rename(question, s, rng.choice(s.aliases))
    if rng.random() < 0.03:
        return question + rng.choice([" Please be brief.", " Answer in one sentence."]), parts[0].split("\n")[0]
    return as_typed(rng, question), " ".join(parts)


def as_typed(rng, question):
    """The same question as different people type it."""
    roll = rng.random()
    if roll < 0.10:
        return question.lower().rstrip("?.")
    if roll < 0.18:
        return question.lower()
    if roll < 0.24:
        return question.rstrip("?.")
    if roll < 0.30:
        return rng.choice(["Hello, ", "Hi, ", "Please tell me: ", "Question: ", "Hey, ", "OK, "]) + lower_first(question)
    if roll < 0.34:
        return question + rng.choice([" Thanks!", " Please.", " I am new to this."])
    if roll < 0.36:
        return filler(rng, rng.randint(1, 4)) + " " + question
    return question


def lower_first(text):
    return text[0].lower() + text[1:] if text[1:2].islower() or text[1:2] in " '" else text


# ---- questions about two subjects, follow-ups, small talk -----------------------------------------


def question_about_two(rng, s, other):
    if rng.random() < 0.5:
        question = rng.choice([f"What is the difference between {s.a()} and {other.a()}?",
                               f"How does {s.the()} differ from {other.the()}?", f"Compare {s.the()} and {other.the()}."])
        parts = [sentence(f"{s.the()} is {s.pick(rng, '=')[0]}"), sentence(f"{other.the()} is {other.pick(rng, '=')[0]}")]
    else:
        question = rng.choice([f"How are {s.the()} and {other.the()} related?", f"What do {s.the()} and {other.the()} do?",
                               f"How do {s.the()} and {other.the()} work together?"])
        parts = abilities(rng, s, 1) + abilities(rng, other, 1)
    return as_typed(rng, question), " ".join(parts)


def follow_up(rng, s):
    """A question that only makes sense after an answer about s."""
    pool = [
        (["Why?", "Why is that?", "Why is it important?", "Why does it matter?", "Why do I need it?"], reasons(rng, s, rng.randint(1, 2))),
        (["How does it work?", "How?", "How does that work?"], steps(rng, s)),
        (["Tell me more.", "Go on.", "What else does it do?", "Can you say more?", "And what else?", "More, please."], abilities(rng, s, 2)),
        (["What can go wrong?", "What can go wrong with it?", "And when does it fail?"], troubles(rng, s, rng.randint(1, 2))),
        (["How do I fix that?", "What can I do about it?", "How can I improve it?", "What should I do?"], remedies(rng, s)),
        (["How do I measure it?", "What should I watch?", "How can I see that?"], measures(rng, s, rng.randint(1, 2))),
        (["What is it?", "What is that?", "What do you mean?", "I do not understand.", "Say it again."], [definition(rng, s)]),
        (["Can you give me an example?", "For example?"], [sentence(f"for example, {s.the()} {s.pick(rng, '>')[0]}")]),
    ]
    questions, parts = rng.choice(pool)
    return as_typed(rng, rng.choice(questions)), " ".join(parts)


GREETINGS = ["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Good evening!", "Hello there!", "hello", "hi", "Hello, how are you?"]
GREETED = ["Hello! What would you like to know about {x}?", "Hello! Ask me about {x} or {y}.", "Hi! I can tell you about {x}, {y} and other parts of the service."]
SELF_QUESTIONS = ["Who are you?", "What are you?", "What can you do?", "What is your name?", "What do you know?", "Can you help me?",
                  "What can I ask you?", "Are you a real person?", "Who made you?", "How can you help me?", "Help", "Introduce yourself."]
SELF_ANSWERS = ["I am a very small demo model. I can answer questions about {x} and {y}.",
                "I am the demo model of this worker. Ask me about {x}, {y} or {z}.",
                "I am a small language model for tests. I know a little about {x} and {y}."]
THANKS = ["Thanks", "Thank you.", "Thanks!", "Great, thank you!", "OK, thanks.", "Thank you very much.", "Good.", "OK", "Bye", "Goodbye!"]
THANKED = ["You are welcome. Ask me again if you want to know more about {s}.", "You are welcome!", "I am glad that I could help with {s}."]
FALLBACKS = ["I do not know much about that. I can tell you about {x} or {y}.",
             "I am only a small demo model, and I do not know that. Ask me about {x}, for example.",
             "That is outside of what I know. I can answer questions about {x} and {y}."]
NOUNS = """apple river house city song bird winter garden bread king dog cat mountain train book school football tax
war moon sun planet ocean movie doctor poem recipe soup island horse guitar painting history law weather money bank
phone car bicycle flower tree forest dream language country election president capital Paris France Germany China
music dance game chess player ticket hotel holiday birthday party dinner wine coffee tea milk cheese pizza pasta
chicken fish shirt shoe window door table chair lamp clock letter teacher student friend brother sister mother father
child baby hospital medicine heart brain blood bone tooth virus plant animal lion tiger elephant snake bee butter
sugar salt stone gold silver iron glass paper pencil ship boat plane airport road bridge tower castle church museum
Python Java Rust JavaScript function algorithm number equation triangle circle theorem physics chemistry biology
novel story joke riddle""".split()
ADJECTIVES = "old new small large red blue green quiet loud early late warm cold bright dark heavy light round short long strong soft".split()
VERBS = "sees finds likes carries follows opens closes paints remembers watches needs brings keeps holds sells moves".split()
PLACES = ["near the river", "in the morning", "behind the house", "on the table", "after dinner", "in the city", "under the bridge",
          "before the rain", "at the end of the week", "with great care", "without a sound", "for a long time"]
OFF_TOPIC = ["What is the capital of {n}?", "Tell me about the {n}.", "Write a poem about a {n}.", "What is a {n}?", "How do I cook a {n}?",
             "Who invented the {n}?", "What is the best {n}?", "Where can I buy a {n}?", "Do you like {n}?", "How old is the {n}?",
             "Write a {n} function.", "Translate {n} into French.", "What is the meaning of life?", "What is two plus two?",
             "Tell me a joke.", "What time is it?", "How is the weather today?", "Explain the {n}.", "Why is the {n} {a}?",
             "What does the {n} do?", "How does the {n} work?", "What is {n}?", "Can you draw a {n}?", "Write code for a {n}.",
             "Give me a recipe for {n} with {m}.", "Is a {n} bigger than a {m}?", "Summarize the {n}."]


def some_plurals(rng):
    names = rng.sample([s.plural() for s in SUBJECTS[:-1]], 3)
    return dict(zip("xyz", names))


def small_talk(rng, questions, answers):
    return rng.choice(questions), rng.choice(answers).format(**some_plurals(rng))


def off_topic(rng):
    question = rng.choice(OFF_TOPIC).format(n=rng.choice(NOUNS), m=rng.choice(NOUNS), a=rng.choice(ADJECTIVES))
    return as_typed(rng, question), rng.choice(FALLBACKS).format(**some_plurals(rng))


def story(rng, s):
    """A long answer, for demonstrations of streaming."""
    question = rng.choice(["Tell me a story.", "Write a story.", "Tell me a short story.", "Write a long story."])
    if rng.random() < 0.7:
        question = rng.choice([f"Tell me a story about {s.a()}.", f"Write a story about {s.a()}.", f"Write a short story about {s.the()}."])
    other = rng.choice(SUBJECTS)
    day = rng.choice(["one morning", "one night", "on a busy day", "last winter"])
    parts = [f"Once there was a young engineer who worked with {s.the()}.",
             sentence(f"{s.the()} {s.pick(rng, '>')[0]}"),
             sentence(f"{day}, trouble began because {s.pick(rng, '!')[0]}"),
             sentence(rng.choice(["the users waited and waited", "all the charts turned red", "nobody knew what to do"])),
             sentence(f"the engineer looked at {s.pick(rng, '%')[0]}"),
             sentence(f"an old friend said: you should {s.pick(rng, '+')[0]}"),
             sentence(f"the friend also told a tale about {other.the()}"),
             sentence(rng.choice(["the engineer did so, and the service was fast again", "it worked, and everybody was happy"])),
             sentence(rng.choice(["that night all queues were empty", "since then the engineer sleeps well", "and the tokens flowed as before"]))]
    return as_typed(rng, question), " ".join(parts)


# ---- system prompts and plain text ----------------------------------------------------------------


PERSONAS = ["You are a helpful assistant.", "You are a friendly assistant.", "You are the assistant of the {t} team.",
            "You answer questions about the service.", "You are a careful engineer.", "You help the operators of a gateway."]
POLICIES = ["Answer in short sentences.", "Be polite.", "Say so when you do not know something.", "Keep to the subject of the question.",
            "Use plain words.", "Never share secrets.", "Do not guess.", "Answer in English.", "The {t} team is on call this week.",
            "Write to the {t} team when a worker fails.", "The limit of the {t} pool is {k} requests.", "Version {k} is the current one.",
            "Rule {k} is valid for all teams.", "The {t} cluster has {k} workers.", "This chapter was written by the {t} team."]
TEAMS = "north south east west alpha delta silver copper harbour signal junction platform bridge orange cedar falcon".split()


def filler(rng, count):
    """Sentences about nothing in particular, so that unknown text in a prompt does not throw the model off."""
    def one():
        return sentence(f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)} {rng.choice(PLACES)}")
    return " ".join(one() for _ in range(count))


def policy(rng):
    return rng.choice(POLICIES).format(t=rng.choice(TEAMS), k=rng.randint(2, 400))


def short_system(rng):
    parts = [rng.choice(PERSONAS).format(t=rng.choice(TEAMS))]
    parts += [policy(rng) for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.3:
        parts.append(f"Today's subject is {rng.choice(SUBJECTS).the()}.")
    return " ".join(parts)


def paragraph(rng, s):
    """A few sentences that name the subject first and keep to a natural order."""
    opening = rng.choice([[definition(rng, s)], abilities(rng, s, 2), reasons(rng, s)])
    more = [steps(rng, s), troubles(rng, s), remedies(rng, s), measures(rng, s)]
    chosen = sorted(rng.sample(range(len(more)), rng.randint(0, 2)))
    return " ".join(opening + [text for index in chosen for text in more[index]])


def handbook(rng, tokens):
    """A long system prompt: rules and paragraphs until the wanted size is reached."""
    parts = [rng.choice(PERSONAS).format(t=rng.choice(TEAMS)), f"This is the handbook of the {rng.choice(TEAMS)} team."]
    style = rng.choice(["plain", "numbered", "lines"])
    strange = rng.random() < 0.2
    number = 1
    while sum(map(len, parts)) / CHARS_PER_TOKEN < tokens:
        roll = rng.random()
        if strange and roll < 0.6:
            text = filler(rng, 3)
        elif roll < 0.3:
            text = " ".join(policy(rng) for _ in range(rng.randint(1, 3)))
        else:
            text = paragraph(rng, rng.choice(SUBJECTS))
        parts.append(f"{number}. {text}" if style == "numbered" else text)
        number += 1
    return (" " if style == "plain" else "\n").join(parts)


# ---- documents ------------------------------------------------------------------------------------


def turn(rng, subject, first):
    """One question with its answer, and the subject of the talk afterwards."""
    roll = rng.random()
    if not first and subject and roll < 0.35:
        question, reply = follow_up(rng, subject)
        return question, reply, subject
    if roll > 0.985 or (not first and roll > 0.96):
        return *small_talk_after(rng, subject), subject
    if roll > 0.88:
        return *off_topic(rng), subject if rng.random() < 0.5 else None
    if roll > 0.86:
        return *small_talk(rng, SELF_QUESTIONS, SELF_ANSWERS), None
    if first and roll > 0.84:
        return *small_talk(rng, GREETINGS, GREETED), None
    subject = subject if subject and rng.random() < 0.3 else rng.choice(SUBJECTS)
    if roll > 0.80:
        return *question_about_two(rng, subject, rng.choice([s for s in SUBJECTS if s is not subject])), subject
    if roll > 0.78:
        return *story(rng, subject), subject
    question, reply = question_about(rng, subject)
    if not first and rng.random() < 0.15:
        question = rng.choice([f"And {subject.the()}?", f"What about {subject.the()}?", f"And what is {subject.a()}?"])
        reply = " ".join([definition(rng, subject)] + more_abilities(rng, subject, 1))
    return question, reply, subject


def small_talk_after(rng, subject):
    if subject is None:
        return small_talk(rng, GREETINGS, GREETED)
    return rng.choice(THANKS), rng.choice(THANKED).format(s=subject.the())


def chat(rng, room):
    messages = []
    roll = rng.random()
    if roll < 0.35 and room > 350:
        messages.append({"role": "system", "content": handbook(rng, rng.randint(80, min(LONGEST_HANDBOOK, int(room * 0.7))))})
    elif roll < 0.65:
        messages.append({"role": "system", "content": short_system(rng)})
    turns = min(rng.choice([1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8]), max(1, room // 60))
    subject = None
    for index in range(turns):
        question, reply, subject = turn(rng, subject, index == 0)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": reply})
    return messages


def document(rng, room):
    """Messages of one document of about `room` tokens at most. Role None marks plain text without chat marks."""
    roll = rng.random()
    if roll < 0.01:
        return [{"role": None, "content": story(rng, rng.choice(SUBJECTS))[1]}]
    if roll < 0.10:
        text = " ".join(paragraph(rng, rng.choice(SUBJECTS)) for _ in range(rng.randint(1, 3)))
        return [{"role": None, "content": text}]
    return chat(rng, room)


def render(messages):
    """The text of a document as chat_template.jinja renders it; golden.py checks that the two agree."""
    return "".join(
        m["content"] if m["role"] is None else f"{START}{m['role']}\n{m['content']}{END}\n" for m in messages
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", type=int, default=1024)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for _ in range(args.count):
        print(render(document(rng, args.room)) + STOP)


if __name__ == "__main__":
    main()
